"""Attention over pages in plain torch, and the contract that every way of doing it fulfils.

It runs anywhere and is what the fast ways are compared with: `triton_decode` for single tokens,
`varlen_prefill` for prompts. It knows no request and does not write to the cache.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED_QUERIES = 256
"""How many of a prompt's tokens attend at once: a mask, and on some devices the scores of every
head, have a row for each of them and a column for each key."""


@dataclass(frozen=True, slots=True)
class Pages:
    """A layer's keys and values."""

    keys: Tensor  # [P, S, Hkv, D]: S tokens a block
    values: Tensor  # [P, S, Hkv, Dv]

    @property
    def block_tokens(self) -> int:
        return self.keys.shape[1]

    @property
    def flat(self) -> tuple[Tensor, Tensor]:
        """Keys and values by place, [P * S, Hkv, D]: views."""
        return self.keys.flatten(0, 1), self.values.flatten(0, 1)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """Single tokens: row i of the step is the last token of a sequence of `lengths[i]`."""

    table: Tensor  # [R, W] int32: block numbers of each slot's sequence
    slots: Tensor  # [n] int32: each sequence's row in the table
    lengths: Tensor  # [n] int32


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """Chunks of several tokens each, one behind the other, and all that they can see."""

    starts: tuple[int, ...]
    """How many tokens each sequence had before."""
    ends: tuple[int, ...]
    query_offsets: Tensor  # [N + 1] int32: where each chunk begins in the queries
    key_offsets: Tensor  # [N + 1] int32: where each sequence begins in what is gathered
    seen_places: Tensor | None
    """[sum of ends]: every token's place in the cache; None if the step's own keys are all."""

    @property
    def most_queries(self) -> int:
        return max(end - start for start, end in zip(self.starts, self.ends, strict=True))

    @property
    def most_keys(self) -> int:
        return max(self.ends)


class DecodeAttention(Protocol):
    def __call__(
        self, query: Tensor, pages: Pages, step: DecodeStep, scale: float, window: int | None
    ) -> Tensor:
        """query [n, H, D] -> [n, H, Dv]."""


class PrefillAttention(Protocol):
    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        step: PrefillStep,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """query [n, H, D]; keys and values [sum of ends, Hkv, D] -> [n, H, Dv]."""


@dataclass(frozen=True, slots=True)
class AttentionKernels:
    """The ways chosen for a layer, once, when it is first seen."""

    decode: DecodeAttention
    prefill: PrefillAttention


def plain_decode(
    query: Tensor, pages: Pages, step: DecodeStep, scale: float, window: int | None
) -> Tensor:
    """Sequence by sequence on exact lengths. See DecodeAttention."""
    outputs = []
    pairs = zip(step.slots.tolist(), step.lengths.tolist(), strict=True)
    for index, (row, length) in enumerate(pairs):
        num_blocks = -(-length // pages.block_tokens)
        blocks = step.table[row, :num_blocks]
        keys = pages.keys[blocks].flatten(0, 1)[:length]  # [N, Hkv, D]
        values = pages.values[blocks].flatten(0, 1)[:length]
        outputs.append(attend_one(query[index : index + 1], keys, values, scale, window))
    return torch.cat(outputs)


def plain_prefill(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    step: PrefillStep,
    scale: float,
    window: int | None,
) -> Tensor:
    """Sequence by sequence, a few queries at a time. See PrefillAttention."""
    outputs, first_query, first_key = [], 0, 0
    for start, end in zip(step.starts, step.ends, strict=True):
        for first in range(start, end, MASKED_QUERIES):
            last = min(first + MASKED_QUERIES, end)
            own = query[first_query : first_query + last - first]
            seen = slice(first_key, first_key + last)
            outputs.append(attend_one(own, keys[seen], values[seen], scale, window))
            first_query += last - first
        first_key += end
    return torch.cat(outputs)


def attend_one(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
) -> Tensor:
    """Attend for a sequence's last n tokens.

    query [n, H, D], keys [N, Hkv, D], values [N, Hkv, Dv] -> [n, H, Dv].
    Heads that share keys are a dimension of their own, so that keys are never copied per head.
    """
    num_queries, num_keys = query.shape[0], keys.shape[0]
    groups = query.view(num_queries, keys.shape[1], -1, query.shape[-1]).permute(1, 2, 0, 3)
    # groups [Hkv, G, n, D]
    shared_keys = keys.transpose(0, 1).unsqueeze(1).expand(-1, groups.shape[1], -1, -1)
    shared_values = values.transpose(0, 1).unsqueeze(1).expand(-1, groups.shape[1], -1, -1)
    out = F.scaled_dot_product_attention(
        groups,
        shared_keys,  # [Hkv, G, N, D]
        shared_values,
        attn_mask=_may_look(num_queries, num_keys, window, query.device),
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def _may_look(
    num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> Tensor | None:
    """[n, N] flags, the last query beside the last key; None where everybody sees everything."""
    is_windowed = window is not None and num_keys > window
    if num_queries == 1 and not is_windowed:
        return None
    offset = num_keys - num_queries
    flags = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(offset)
    return flags.triu(offset - window + 1) if window is not None else flags
