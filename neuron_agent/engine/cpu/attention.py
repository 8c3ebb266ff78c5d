"""Attention of a whole step by the compiled kernels, over keys and values in slots.

A row that is its sequence's only one of the step is attended to together with the others of its
kind. A prompt goes by itself, where the kernels do prompts. It knows no slot but its tensors.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from neuron_agent.engine.cpu.native import DTYPES, LANES, MAX_HEAD_SIZE, Heads, native


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernels are here and do heads of this kind."""
    is_alike = query.dtype == key.dtype == value.dtype and query.dtype in DTYPES
    sizes = key.shape[2], value.shape[2]
    is_whole = all(size % LANES == 0 and size <= MAX_HEAD_SIZE for size in sizes)
    return is_alike and is_whole and native() is not None


class StepAttention:
    """For one step: made when it begins, used by every layer.

    `pieces`: of each sequence its first row in the step, how many rows, and the position of the
    first. Those of a single row come first.
    """

    def __init__(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        rows = [(0, 0, 0, *piece, 0) for piece in pieces]
        self._table = torch.tensor(rows)  # [P, PIECE_FIELDS]: what all layers have in common
        self._num_single = sum(row[4] == 1 for row in rows)

    def attend(
        self,
        kept: Sequence[tuple[Tensor, Tensor]],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> tuple[Tensor, int]:
        """Store a layer's new keys and values, then attend. To be called if `can_attend`.

        kept: each piece's keys [Hkv, C, D] and values [Hkv, C, Dv], query [T, H, D], key and value
        [T, Hkv, D] -> [T, H, Dv] and for how many of the pieces, from the first on, it is complete.
        """
        kernels = native()
        assert kernels is not None, "see can_attend"
        query, key, value = map(_by_heads, (query, key, value))
        heads = Heads(
            *(query.shape[1], key.shape[1], key.shape[2], value.shape[2]),
            *(query.stride(0), key.stride(0), value.stride(0)),
            scale,
        )
        table, num_single = self._table, self._num_single
        table[:, :3] = torch.tensor([room_of(keys, values) for keys, values in kept])
        table[:, -1] = window or 0
        out = query.new_empty(*query.shape[:2], value.shape[2])
        kernels.store(heads, table, key, value)
        if num_single:
            kernels.decode(heads, table[:num_single], query, out)
        if query.dtype != torch.bfloat16 or not kernels.prefers_products:
            return out, num_single
        for piece in table[num_single:]:
            kernels.prompt(heads, piece, query, out)
        return out, len(table)


def room_of(keys: Tensor, values: Tensor) -> tuple[int, int, int]:
    """The first of a piece's fields, of keys [Hkv, C, D] and values: addresses and capacity.

    The tensors' own, whatever the slot says: where memory ran out, only some of them have grown.
    """
    return keys.data_ptr(), values.data_ptr(), keys.shape[1]


def _by_heads(rows: Tensor) -> Tensor:
    """[T, heads, size], with the heads of a row next to each other."""
    is_dense = rows.stride(2) == 1 and rows.stride(1) == rows.shape[2]
    return rows if is_dense else rows.contiguous()
