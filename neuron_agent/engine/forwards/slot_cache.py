"""The KV cache of CPUs: contiguous keys and values per sequence and layer, attended to exactly.

A slot grows by doubling, but never past the tokens that the scheduler's books give its sequence:
memory follows use. Each sequence is attended to on its exact length, where there are compiled
kernels all of a step in one call; a neighbour changes nothing. It knows no request and no weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from neuron_agent.engine.cpu.attention import StepAttention, can_attend, room_of
from neuron_agent.engine.cpu.native import PIECE_FIELDS
from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from neuron_agent.scheduling.pool import KvLayout

FIRST_TOKENS = 64


@dataclass(slots=True)
class _Slot:
    """What is kept of one sequence: per layer, room for `capacity` tokens."""

    capacity: int = 0
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # each [Hkv, C, D]
    rooms: Tensor | None = None  # [L, 3]: see `room_of`; until one of them moves


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk as attention needs it: its rows in the step, its positions, its slot."""

    slot: _Slot
    first_row: int
    end_row: int
    start: int
    end: int

    @property
    def num_rows(self) -> int:
        return self.end_row - self.first_row


class SlotCache:
    """Storage by slot and layer. Writing at position 0 starts a slot anew."""

    layout = KvLayout.SLOTS
    block_tokens = 1

    def __init__(self) -> None:
        self._slots: dict[int, _Slot] = {}
        self._pieces: tuple[_Piece, ...] = ()  # of this step; those of a single row come first
        self._together: StepAttention | None = None  # the same pieces for the kernels
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}  # of this step
        self._token_bytes: dict[int, int] = {}  # by layer

    def reserve(self, num_tokens: int) -> None:
        """Nothing: memory follows use."""

    # --- the step ------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Make room for what the batch will write, and carry out its copies.

        1. Copies in their order; the target gets at once the room that its chunk asks for.
        2. Room for every chunk, in all layers that are known: layers then write and ask nothing.
        """
        wanted = {chunk.slot: chunk for chunk in batch.chunks}
        for copy in batch.copies:
            self._copy(copy, wanted.get(copy.target))
        pieces = self._pieces_of(batch.chunks)
        self._pieces = tuple(sorted(pieces, key=lambda piece: piece.num_rows != 1))
        self._together = None
        self._masks.clear()

    def _pieces_of(self, chunks: Sequence[Chunk]) -> list[_Piece]:
        """Lay the chunks behind each other; every one gets its room."""
        pieces, row = [], 0
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
        kept = [
            piece.slot.layers.get(layer) or _new_layer(piece.slot, layer, key, value)
            for piece in self._pieces
        ]
        if can_attend(query, key, value):
            return self._attend_together(kept, query, key, value, scale, window)
        out = query.new_empty(*query.shape[:2], value.shape[2])
        for piece, (keys, values) in zip(self._pieces, kept, strict=True):
            rows = slice(piece.first_row, piece.end_row)
            keys[:, piece.start : piece.end] = key[rows].transpose(0, 1)
            values[:, piece.start : piece.end] = value[rows].transpose(0, 1)
            out[rows] = self._attend_piece(piece, query[rows], keys, values, scale, window)
        return out

    def _attend_together(
        self,
        kept: Sequence[tuple[Tensor, Tensor]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Attend by the kernels; what they do not attend to, one sequence after the other."""
        if self._together is None:
            self._together = StepAttention(
                (piece.first_row, piece.num_rows, piece.start) for piece in self._pieces
            )
        out, num_done = self._together.attend(kept, query, key, value, scale, window)
        for piece, (keys, values) in zip(self._pieces[num_done:], kept[num_done:], strict=True):
            rows = slice(piece.first_row, piece.end_row)
            out[rows] = self._attend_piece(piece, query[rows], keys, values, scale, window)
        return out

    def step_pieces(self, like: Tensor, windows: Sequence[int | None]) -> tuple[Tensor, int]:
        """For kernels that attend in all layers by themselves: where this step's pieces are.

        like: a token's keys [Hkv, D]; its values are of the same size
        -> [L, P, PIECE_FIELDS], and how many of the pieces have a single row; they come first.
        """
        for layer in range(len(windows)):
            self._token_bytes[layer] = 2 * like.nbytes
        numbers = [(piece.first_row, piece.num_rows, piece.start) for piece in self._pieces]
        table = torch.empty(len(windows), len(numbers), PIECE_FIELDS, dtype=torch.long)
        table[..., :3] = torch.stack(
            [_rooms(piece.slot, like, len(windows)) for piece in self._pieces], 1
        )
        table[..., 3:-1] = torch.tensor(numbers)
        table[..., -1] = torch.tensor([window or 0 for window in windows]).unsqueeze(1)
        return table, sum(piece.num_rows == 1 for piece in self._pieces)

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
        target = self._slots.setdefault(copy.target, _Slot())
        capacity = max(copy.num_tokens, _room(0, chunk) if chunk else 0)
        if target.capacity < capacity:
            target.layers.clear()
            target.rooms = None
            target.capacity = capacity
        for layer, pair in source.layers.items():
            mine = target.layers.get(layer) or _new_layer(target, layer, *map(_by_token, pair))
            for old, new in zip(pair, mine, strict=True):
                new[:, : copy.num_tokens] = old[:, : copy.num_tokens]

    # --- memory --------------------------------------------------------------------------------

    def release(self, slot: int) -> None:
        """Forget a slot; its memory is free again."""
        self._slots.pop(slot, None)
        self._end_step()

    def clear(self) -> None:
        self._slots.clear()
        self._end_step()

    def _end_step(self) -> None:
        self._pieces = ()
        self._together = None
        self._masks.clear()

    @property
    def num_slots(self) -> int:
        """Slots that hold anything."""
        return len(self._slots)

    @property
    def allocated_bytes(self) -> int:
        layers = [pair for slot in self._slots.values() for pair in slot.layers.values()]
        return sum(tensor.nbytes for pair in layers for tensor in pair)

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
    slot.rooms = None
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
    slot.rooms = None
    return keys, values


def _rooms(slot: _Slot, like: Tensor, num_layers: int) -> Tensor:
    """[L, 3]: where a slot's keys and values lie; it gets its room in layers where it has none."""
    if slot.rooms is None:
        row = like.unsqueeze(0)
        kept = [
            slot.layers.get(layer) or _new_layer(slot, layer, row, row)
            for layer in range(num_layers)
        ]
        slot.rooms = torch.tensor([room_of(*pair) for pair in kept])
    return slot.rooms


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
