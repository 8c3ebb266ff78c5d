"""Which block belongs to which sequence, as the index tensors that attention over blocks needs.

A plan is made once a step, for layers that look equally far back. It knows block numbers and
lengths, and neither keys nor how they are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_TOKENS = 64
"""Measured: the products of 32 or 128 tokens are slower, and half a block is wasted at each end."""


@dataclass(slots=True)
class BlockList:
    """A sequence's blocks in order, and how many tokens it has."""

    blocks: list[int]
    num_tokens: int

    @property
    def room(self) -> int:
        return len(self.blocks) * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class DensePlan:
    """For S sequences of H heads over N blocks; the longest has P blocks in sight."""

    chosen: Tensor | None
    """[N]: the blocks in sight; None = the first N, whoever's they are."""
    owners: Tensor  # [N]: the sequence of each block
    to_sequences: Tensor  # [S * H * P]: of rows by block and head, those of each sequence and head
    to_blocks: Tensor  # [N * H]: the way back
    mask: Tensor  # [S, 1, P * BLOCK_TOKENS]: 0 where a token looks, minus infinity where not
    parts: Tensor  # the blocks of the first sequence, of the second ...
    part_starts: Tensor  # [S]: where each one's begin in `parts`
    written: Tensor  # [S * Hkv]: the place of each one's last token, in rows by block, head, token


def plan_blocks(
    lists: Sequence[BlockList],
    num_blocks: int,
    num_heads: int,
    num_shared: int,
    window: int | None,
) -> DensePlan:
    """Plan one token of each sequence, its last, over all `num_blocks` blocks there are.

    A sequence's shorter row is filled up with a block of its own: what is masked, too, must not
    be a neighbour's, whose numbers may be none.
    """
    firsts = [_first_in_sight(one, window) for one in lists]
    seen = [one.blocks[first:] for one, first in zip(lists, firsts, strict=True)]
    chosen = [block for blocks in seen for block in blocks] if any(firsts) else None
    if chosen is not None:
        seen, num_blocks = _numbered_anew(seen), len(chosen)
    width = max(map(len, seen))
    owners, places = [0] * num_blocks, [0] * num_blocks
    for row, blocks in enumerate(seen):
        for place, block in enumerate(blocks):
            owners[block], places[block] = row, place
    padded = [blocks + blocks[:1] * (width - len(blocks)) for blocks in seen]
    heads = torch.arange(num_heads)
    table = torch.tensor(padded).unsqueeze(1)  # [S, 1, P]
    owner_of, place_of = torch.tensor((owners, places))  # [N] each
    rows = owner_of.unsqueeze(1) * num_heads + heads  # [N, H]
    return DensePlan(
        chosen=None if chosen is None else torch.tensor(chosen),
        owners=owner_of,
        to_sequences=(table * num_heads + heads.unsqueeze(1)).flatten(),
        to_blocks=(rows * width + place_of.unsqueeze(1)).flatten(),
        mask=_mask(lists, firsts, width, window),
        parts=torch.tensor([block for blocks in seen for block in blocks]),
        part_starts=torch.tensor([0, *map(len, seen[:-1])]).cumsum(0),
        written=_last_places(lists, num_shared),
    )


def _first_in_sight(one: BlockList, window: int | None) -> int:
    return 0 if window is None else max(0, one.num_tokens - window) // BLOCK_TOKENS


def _numbered_anew(seen: Sequence[list[int]]) -> list[list[int]]:
    """Return the numbers that blocks have when only those in sight are there, in this order."""
    numbered, number = [], 0
    for blocks in seen:
        numbered.append(list(range(number, number + len(blocks))))
        number += len(blocks)
    return numbered


def _mask(
    lists: Sequence[BlockList], firsts: Sequence[int], width: int, window: int | None
) -> Tensor:
    """[S, 1, width * BLOCK_TOKENS]"""
    starts = torch.tensor(firsts).unsqueeze(1) * BLOCK_TOKENS
    ends = torch.tensor([one.num_tokens for one in lists]).unsqueeze(1)
    positions = starts + torch.arange(width * BLOCK_TOKENS)  # [S, P * BLOCK_TOKENS]
    hidden = positions >= ends
    if window is not None:
        hidden |= positions < ends - window
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")).unsqueeze(1)


def _last_places(lists: Sequence[BlockList], num_shared: int) -> Tensor:
    """[S * Hkv]"""
    lasts = [divmod(one.num_tokens - 1, BLOCK_TOKENS) for one in lists]
    blocks = torch.tensor([one.blocks[place] for one, (place, _) in zip(lists, lasts, strict=True)])
    offsets = torch.tensor([offset for _, offset in lasts])
    heads = torch.arange(num_shared)
    rows = (blocks.unsqueeze(1) * num_shared + heads) * BLOCK_TOKENS  # [S, Hkv]
    return (rows + offsets.unsqueeze(1)).flatten()
