"""Keys and values of the sequences that decode, in blocks without gaps: one product serves all.

On a CPU a small product costs as much to call as to compute, and a sequence needs two of them in
every layer. So the blocks of all decoding sequences lie side by side, whoever's they are, and are
multiplied in one call; which scores are whose is sorted out afterwards, exactly. When a sequence
leaves, the last blocks move into its place. It knows slots by number, and no request.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neuron_agent.engine.forwards.dense_plan import (
    BLOCK_TOKENS,
    BlockList,
    DensePlan,
    plan_blocks,
)

LayerPairs = Mapping[int, tuple[Tensor, Tensor]]
"""By layer, keys and values [Hkv, n, D] of a sequence."""

LEAST_BLOCKS = 16
ROUND_BLOCKS = 8
"""Products are of a multiple of so many blocks: oneDNN makes code for every number it meets."""


class DenseBlocks:
    """Raises what torch raises if memory runs out; then nothing has changed but capacity."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # each [C, Hkv, BLOCK_TOKENS, D]
        self._lists: dict[int, BlockList] = {}  # by slot
        self._owners: list[int] = []  # the slot of each block
        self._capacity = 0
        self._step: list[BlockList] = []
        self._plans: dict[tuple[int, int, int | None], DensePlan] = {}  # of this step

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(self._lists)

    @property
    def allocated_bytes(self) -> int:
        return sum(tensor.nbytes for pair in self._layers.values() for tensor in pair)

    # --- who is in it --------------------------------------------------------------------------

    def put(self, slot: int, layers: LayerPairs, num_tokens: int) -> None:
        """Take a copy of a sequence's first tokens in."""
        first = len(self._owners)
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        self._make_room(first + num_blocks, layers)
        blocks = slice(first, first + num_blocks)
        for layer, pair in layers.items():
            for kept, given in zip(self._layers[layer], pair, strict=True):
                kept[blocks][-1].zero_()  # see `extend`
                _split(given[:, :num_tokens], kept[blocks])
        self._owners += [slot] * num_blocks
        self._lists[slot] = BlockList(list(range(first, first + num_blocks)), num_tokens)

    def extend(self, slot: int, num_tokens: int) -> None:
        """Let a sequence have so many tokens. What is not written yet is zero: masked numbers may
        be any, but they must be numbers."""
        held = self._lists[slot]
        while held.room < num_tokens:
            block = len(self._owners)
            self._make_room(block + 1)
            for pair in self._layers.values():
                for kept in pair:
                    kept[block].zero_()
            held.blocks.append(block)
            self._owners.append(slot)
        held.num_tokens = num_tokens

    def read(self, slot: int, num_tokens: int | None = None) -> dict[int, tuple[Tensor, Tensor]]:
        """Return a copy of a sequence's first tokens, of all if no number is given."""
        held = self._lists[slot]
        wanted = held.num_tokens if num_tokens is None else num_tokens
        blocks = torch.tensor(held.blocks[: -(-wanted // BLOCK_TOKENS)])
        return {
            layer: (_joined(keys[blocks], wanted), _joined(values[blocks], wanted))
            for layer, (keys, values) in self._layers.items()
        }

    @torch.inference_mode()
    def drop(self, slot: int) -> None:
        """Take a sequence out, if it is in; the last blocks move into the gaps.

        Also between two steps, where a request was cancelled.
        """
        held = self._lists.pop(slot, None)
        if held is None:
            return
        self._step = []
        num_left = len(self._owners) - len(held.blocks)
        gaps = [block for block in held.blocks if block < num_left]
        movers = [block for block in range(num_left, len(self._owners)) if block not in held.blocks]
        if gaps:
            self._move(movers, gaps)
        del self._owners[num_left:]
        if 2 * num_left < self._capacity:
            self._resize(num_left)

    def clear(self) -> None:
        self._layers.clear()
        self._lists.clear()
        self._owners.clear()
        self._plans.clear()
        self._step = []
        self._capacity = 0

    # --- the step ------------------------------------------------------------------------------

    def begin(self, slots: Sequence[int]) -> None:
        """Get ready for the last token of each of these: rows of a step come in their order."""
        self._step = [self._lists[slot] for slot in slots]
        self._plans.clear()

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """query [S, H, D], key and value [S, Hkv, D], a row per sequence -> [S, H, Dv].

        1. Store the new keys and values.
        2. Multiply each block by its sequence's heads.
        3. Lay a sequence's scores side by side, and make shares of them.
        4. Multiply each block's values by its shares; sum up the blocks of each sequence.
        """
        num_heads, num_shared = query.shape[1], key.shape[1]
        plan = self._plan(num_heads, num_shared, window)
        keys, values = self._layers[layer]
        for kept, new in ((keys, key), (values, value)):
            kept.view(-1, kept.shape[-1]).index_copy_(0, plan.written, new.flatten(0, 1))
        keys, values = (_in_sight(kept, plan) for kept in (keys, values))  # [N * Hkv, B, D]
        heads = query.index_select(0, plan.owners).view(len(keys), -1, query.shape[2])
        scores = torch.bmm(heads, keys.transpose(1, 2))  # [N * Hkv, G, B]
        scores = scores.view(-1, BLOCK_TOKENS).index_select(0, plan.to_sequences)
        scores = torch.add(plan.mask, scores.view(len(query), num_heads, -1), alpha=scale)
        shares = scores.softmax(-1).to(query.dtype).view(-1, BLOCK_TOKENS)  # [S * H * P, B]
        shares = shares.index_select(0, plan.to_blocks).view(len(keys), -1, BLOCK_TOKENS)
        seen = torch.bmm(shares, values).view(len(plan.owners), -1)  # [N, H * Dv]
        return _sums(seen, plan).view(len(query), num_heads, -1)

    def _plan(self, num_heads: int, num_shared: int, window: int | None) -> DensePlan:
        key = num_heads, num_shared, window
        if key not in self._plans:
            num_blocks = -(-len(self._owners) // ROUND_BLOCKS) * ROUND_BLOCKS
            num_blocks = min(num_blocks, self._capacity)
            self._plans[key] = plan_blocks(self._step, num_blocks, num_heads, num_shared, window)
        return self._plans[key]

    # --- memory --------------------------------------------------------------------------------

    def _make_room(self, num_blocks: int, like: LayerPairs | None = None) -> None:
        """Let there be so many blocks, of the layers there are and of those of `like`."""
        for layer, (key, value) in (like or {}).items():
            if layer not in self._layers:
                self._layers[layer] = _new(key, self._capacity), _new(value, self._capacity)
        if num_blocks > self._capacity:
            self._resize(max(num_blocks, self._capacity * 3 // 2, LEAST_BLOCKS))

    def _resize(self, capacity: int) -> None:
        # If memory runs out on the way, no layer has less than is promised.
        self._capacity = min(self._capacity, capacity)
        num_used = min(len(self._owners), capacity)
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = (
                _resized(keys, capacity, num_used),
                _resized(values, capacity, num_used),
            )
        self._capacity = capacity

    def _move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        source_index, target_index = torch.tensor(sources), torch.tensor(targets)
        for pair in self._layers.values():
            for kept in pair:
                kept.index_copy_(0, target_index, kept.index_select(0, source_index))
        for source, target in zip(sources, targets, strict=True):
            owner = self._owners[target] = self._owners[source]
            blocks = self._lists[owner].blocks
            blocks[blocks.index(source)] = target


def _new(like: Tensor, capacity: int) -> Tensor:
    """[C, Hkv, BLOCK_TOKENS, D] for keys or values [Hkv, n, D]."""
    return like.new_empty(capacity, like.shape[0], BLOCK_TOKENS, like.shape[2])


def _resized(kept: Tensor, capacity: int, num_used: int) -> Tensor:
    resized = kept.new_empty(capacity, *kept.shape[1:])
    resized[:num_used] = kept[:num_used]
    return resized


def _split(tokens: Tensor, blocks: Tensor) -> None:
    """Write tokens [Hkv, n, D] into blocks [P, Hkv, BLOCK_TOKENS, D]."""
    num_whole, num_rest = divmod(tokens.shape[1], BLOCK_TOKENS)
    if num_whole:
        whole = tokens[:, : num_whole * BLOCK_TOKENS]
        parts = torch.unflatten(whole, 1, (num_whole, BLOCK_TOKENS))
        blocks[:num_whole] = parts.transpose(0, 1)
    if num_rest:
        blocks[num_whole, :, :num_rest] = tokens[:, num_whole * BLOCK_TOKENS :]


def _joined(blocks: Tensor, num_tokens: int) -> Tensor:
    """Blocks [P, Hkv, BLOCK_TOKENS, D] -> their first tokens [Hkv, num_tokens, D]."""
    return blocks.transpose(0, 1).flatten(1, 2)[:, :num_tokens].contiguous()


def _in_sight(kept: Tensor, plan: DensePlan) -> Tensor:
    """[C, Hkv, BLOCK_TOKENS, D] -> [N * Hkv, BLOCK_TOKENS, D]; a copy only if some are skipped."""
    if plan.chosen is None:
        return kept[: len(plan.owners)].flatten(0, 1)
    return kept.index_select(0, plan.chosen).flatten(0, 1)


def _sums(seen: Tensor, plan: DensePlan) -> Tensor:
    """[N, H * Dv] by block -> [S, H * Dv]: each sequence's sum, of its own blocks alone.

    As one product with ones and zeros it would mix in others' NaN.
    """
    sums: Tensor = torch.embedding_bag(seen, plan.parts, plan.part_starts)[0]
    return sums
