"""The KV cache of CPUs: keys and values per sequence and layer, attended to exactly.

A prompt lies in a slot of its own, contiguous. A slot grows by doubling, but never past the tokens
that the scheduler's books give its sequence: memory follows use. Prompts are attended to one by
one on exact lengths; sequences that decode move into `dense_blocks`, where one product serves all,
and back when they end, since what they leave may be another's beginning. A neighbour changes
nothing. It knows neither requests nor weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from neuron_agent.engine.forwards.dense_blocks import DenseBlocks
from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from neuron_agent.scheduling.pool import KvLayout

FIRST_TOKENS = 64


@dataclass(slots=True)
class _Slot:
    """What is kept of one sequence: per layer, room for `capacity` tokens.

    Nothing while the sequence decodes: then all of it is in the dense blocks.
    """

    capacity: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # each [Hkv, C, D]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk as attention needs it: its rows in the step, its positions, its slot."""

    slot: _Slot
    first_row: int
    end_row: int
    start: int
    end: int


class SlotCache:
    """Storage by slot and layer. Writing at position 0 starts a slot anew.

    `may_join`: sequences that decode may be attended to together. In bfloat16 their scores are
    rounded then.
    """

    layout = KvLayout.SLOTS
    block_tokens = 1

    def __init__(self, *, may_join: bool = True) -> None:
        self.may_join = may_join
        self._slots: dict[int, _Slot] = {}
        self._dense = DenseBlocks()
        self._num_dense = 0  # rows of this step; they come first
        self._pieces: tuple[_Piece, ...] = ()  # the others
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}  # of this step
        self._token_bytes: dict[int, int] = {}  # by layer

    def reserve(self, num_tokens: int) -> None:
        """Nothing: memory follows use."""

    # --- the step ------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Make room for what the batch will write, and carry out its copies.

        1. Sequences that do not decode now leave the dense blocks.
        2. Copies in their order; the target gets at once the room that its chunk asks for.
        3. Room for every chunk, in all layers that are known: layers then write and ask nothing.
        """
        decoding = self._decoders(batch.chunks)
        for number in set(self._dense.slots) - {chunk.slot for chunk in decoding}:
            self._leave_dense(number)
        wanted = {chunk.slot: chunk for chunk in batch.chunks}
        for copy in batch.copies:
            self._copy(copy, wanted.get(copy.target))
        self._begin_dense(decoding)
        self._pieces = tuple(self._pieces_of(batch.chunks[len(decoding) :], len(decoding)))
        self._masks.clear()

    def _decoders(self, chunks: Sequence[Chunk]) -> Sequence[Chunk]:
        """Return the leading chunks that decode in the dense blocks: all that continue a sequence.

        One alone does not move in for the sake of nobody. It is not worth moving out either.
        """
        if not self.may_join:
            return ()
        num_leading = 0
        while num_leading < len(chunks) and self._continues(chunks[num_leading]):
            num_leading += 1
        is_alone = num_leading == 1 and chunks[0].slot not in self._dense.slots
        return () if is_alone else chunks[:num_leading]

    def _continues(self, chunk: Chunk) -> bool:
        slot = self._slots.get(chunk.slot)
        is_kept = chunk.slot in self._dense.slots or (slot is not None and slot.layers)
        return bool(chunk.is_decode and chunk.start and is_kept)

    def _begin_dense(self, decoding: Sequence[Chunk]) -> None:
        for chunk in decoding:
            if chunk.slot not in self._dense.slots:
                self._dense.put(chunk.slot, self._slots[chunk.slot].layers, chunk.start)
                self._slots[chunk.slot] = _Slot()
            self._dense.extend(chunk.slot, chunk.end)
        self._dense.begin([chunk.slot for chunk in decoding])
        self._num_dense = len(decoding)

    def _leave_dense(self, number: int) -> None:
        layers = self._dense.read(number)
        self._dense.drop(number)
        capacity = next(iter(layers.values()))[0].shape[1]
        self._slots[number] = _Slot(capacity, layers)

    def _pieces_of(self, chunks: Sequence[Chunk], row: int) -> list[_Piece]:
        """Lay these chunks behind each other, from a row on; every one gets its room."""
        pieces = []
        for chunk in chunks:
            slot = self._slots.setdefault(chunk.slot, _Slot())
            _make_room(slot, _room(slot.capacity, chunk), kept_tokens=chunk.start)
            end_row = row + len(chunk.token_ids)
            pieces.append(_Piece(slot, row, end_row, chunk.start, chunk.end))
            row = end_row
        return pieces

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """query [T, H, D], key and value [T, Hkv, D] -> [T, H, Dv]. See KvCache."""
        if layer not in self._token_bytes:
            self._token_bytes[layer] = (key[0].numel() + value[0].numel()) * key.itemsize
        outputs = []
        if self._num_dense:
            rows = slice(self._num_dense)
            out = self._dense.attend(layer, query[rows], key[rows], value[rows], scale, window)
            outputs.append(out)
        for piece in self._pieces:
            keys, values = piece.slot.layers.get(layer) or _new_layer(piece.slot, layer, key, value)
            rows = slice(piece.first_row, piece.end_row)
            keys[:, piece.start : piece.end] = key[rows].transpose(0, 1)
            values[:, piece.start : piece.end] = value[rows].transpose(0, 1)
            outputs.append(self._attend_piece(piece, query[rows], keys, values, scale, window))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_piece(
        self,
        piece: _Piece,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """query [n, H, D], keys and values [Hkv, C, D] -> [n, H, Dv].

        Heads that share keys are a dimension of their own, so that keys are never copied per head.
        """
        num_tokens, num_heads, _ = query.shape
        # Keys before every token's window are left out; a window inside the chunk needs a mask.
        first = 0 if window is None else max(0, piece.start - window + 1)
        seen_keys = keys[:, first : piece.end].unsqueeze(1)  # [Hkv, 1, N, D]
        seen_values = values[:, first : piece.end].unsqueeze(1)
        groups = query.view(num_tokens, keys.shape[0], -1, query.shape[-1])  # [n, Hkv, G, D]
        if num_tokens == 1:
            # One token sees everything: the heads of a group are as good as a row of queries.
            folded = groups.transpose(0, 1)  # [Hkv, 1, G, D]
            out = F.scaled_dot_product_attention(folded, seen_keys, seen_values, scale=scale)
            return out.reshape(1, num_heads, -1)
        mask = self._mask(num_tokens, piece.start - first, window, query)
        num_groups = groups.shape[2]
        out = F.scaled_dot_product_attention(
            groups.permute(1, 2, 0, 3),  # [Hkv, G, n, D]
            seen_keys.expand(-1, num_groups, -1, -1),
            seen_values.expand(-1, num_groups, -1, -1),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        return out.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, -1)

    def _mask(
        self, num_tokens: int, offset: int, window: int | None, like: Tensor
    ) -> Tensor | None:
        """Return what to add to the scores [n, offset + n]; None for plain causality.

        It is made once a step, as numbers: attention would turn flags into numbers in every layer.
        """
        if window is not None and offset + num_tokens <= window:
            window = None  # nobody's window ends within these keys
        if offset == 0 and window is None:
            return None
        key = num_tokens, offset, window
        if key not in self._masks:
            self._masks[key] = _causal_mask(num_tokens, offset, window, like)
        return self._masks[key]

    def _copy(self, copy: Copy, chunk: Chunk | None) -> None:
        source = self._slots.get(copy.source)
        if source is None or copy.source == copy.target:
            return  # nothing was ever kept there, or it is in its place already
        is_dense = copy.source in self._dense.slots
        kept = self._dense.read(copy.source, copy.num_tokens) if is_dense else source.layers
        target = self._slots.setdefault(copy.target, _Slot())
        capacity = max(copy.num_tokens, _room(0, chunk) if chunk else 0)
        if target.capacity < capacity:
            target.layers.clear()
            target.capacity = capacity
        for layer, pair in kept.items():
            mine = target.layers.get(layer) or _new_layer(target, layer, *map(_by_token, pair))
            for old, new in zip(pair, mine, strict=True):
                new[:, : copy.num_tokens] = old[:, : copy.num_tokens]

    # --- memory --------------------------------------------------------------------------------

    def release(self, slot: int) -> None:
        """Forget a slot; its memory is free again."""
        self._slots.pop(slot, None)
        self._dense.drop(slot)
        self._end_step()

    def clear(self) -> None:
        self._slots.clear()
        self._dense.clear()
        self._end_step()

    def _end_step(self) -> None:
        self._pieces = ()
        self._num_dense = 0
        self._masks.clear()

    @property
    def num_slots(self) -> int:
        """Slots that hold anything."""
        return len(self._slots)

    @property
    def allocated_bytes(self) -> int:
        layers = [pair for slot in self._slots.values() for pair in slot.layers.values()]
        in_slots = sum(tensor.nbytes for pair in layers for tensor in pair)
        return in_slots + self._dense.allocated_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes over all layers, as measured on those that were attended."""
        return sum(self._token_bytes.values())


def _room(capacity: int, chunk: Chunk) -> int:
    """Return how many tokens a slot should hold so that the chunk fits."""
    if capacity >= chunk.end:
        return capacity
    capacity = capacity or FIRST_TOKENS
    while capacity < chunk.end:
        capacity *= 2
    return max(chunk.end, min(capacity, chunk.reserved_tokens))


def _make_room(slot: _Slot, capacity: int, kept_tokens: int) -> None:
    """Let every layer hold `capacity` tokens, beginning with those that are kept."""
    if capacity <= slot.capacity:
        return
    for layer, pair in slot.layers.items():
        keys, values = (_grown(tensor, capacity, kept_tokens) for tensor in pair)
        slot.layers[layer] = keys, values
    # Last: if memory runs out on the way, the slot must not promise what some layers lack.
    slot.capacity = capacity


def _grown(held: Tensor, capacity: int, kept_tokens: int) -> Tensor:
    grown = held.new_empty(held.shape[0], capacity, held.shape[2])
    grown[:, :kept_tokens] = held[:, :kept_tokens]
    return grown


def _new_layer(slot: _Slot, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Give a slot a layer's room, shaped like key and value [T, Hkv, D]."""
    keys = key.new_empty(key.shape[1], slot.capacity, key.shape[2])
    values = value.new_empty(value.shape[1], slot.capacity, value.shape[2])
    slot.layers[layer] = keys, values
    return keys, values


def _by_token(stored: Tensor) -> Tensor:
    """[Hkv, C, D] -> [C, Hkv, D], as a step's keys come."""
    return stored.transpose(0, 1)


def _causal_mask(num_tokens: int, offset: int, window: int | None, like: Tensor) -> Tensor:
    """[n, offset + n]: 0 where a token may look, minus infinity where not."""
    may_look = torch.ones(num_tokens, offset + num_tokens, dtype=torch.bool).tril(offset)
    if window is not None:
        may_look = may_look.triu(offset - window + 1)
    mask = torch.zeros(may_look.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~may_look.to(like.device), float("-inf"))
