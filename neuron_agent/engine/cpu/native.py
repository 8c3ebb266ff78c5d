"""The compiled kernels as functions of tensors.

Every tensor lies on the CPU, in float32 or bfloat16, those of a call in the same; rows are
contiguous where no stride is given, and sizes that are gone through are multiples of `LANES`.
Callers ask `can_...` first: nothing here falls back, and the kernels check nothing.
"""

import ctypes
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from functools import cache
from typing import Final

import torch
from torch import Tensor

from neuron_agent.engine.cpu.compiling import kernels

LANES: Final = 16
MAX_HEAD_SIZE: Final = 256
DTYPES: Final = (torch.float32, torch.bfloat16)
PIECE_FIELDS: Final = 7
"""Of a piece, as 64-bit numbers: addresses of keys and values, capacity, first row, number of rows,
start, window (0 = none)."""


class Heads(ctypes.Structure):
    """What attention's rows look like: see `kernels/slots.h`."""

    _fields_ = [
        *((name, c_int64) for name in ("num_heads", "num_shared", "key_size", "value_size")),
        *((name, c_int64) for name in ("query_stride", "key_stride", "value_stride")),
        ("scale", c_double),
    ]


class Product(ctypes.Structure):
    """A linear layer: see `kernels/products.h`. Addresses; None = there is none of it."""

    _fields_ = [
        *((name, c_void_p) for name in ("packed", "scales", "corrections", "bias")),
        *((name, c_int64) for name in ("num_outputs", "width")),
    ]


class Layer(ctypes.Structure):
    """A decoder layer: see `kernels/decoder.h`."""

    _fields_ = [
        *((name, c_void_p) for name in ("input_norm", "head_norms", "mlp_norm")),
        *((name, Product) for name in ("query_key_value", "output", "gate_up", "down")),
    ]


class Decoder(ctypes.Structure):
    _fields_ = [
        ("heads", Heads),
        *((name, c_int64) for name in ("hidden", "intermediate", "num_layers")),
        *((name, c_void_p) for name in ("layers", "norm")),
        ("epsilon", c_double),
    ]


class Step(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_rows", "num_pieces", "num_single", "num_wanted")),
        *((name, c_void_p) for name in ("pieces", "turns", "wanted")),
        *((name, c_void_p) for name in ("states", "normed", "wide", "narrow", "out", "workspace")),
    ]


_SIGNATURES = {
    "cortex_store": [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int],
    "cortex_decode": [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int, c_int],
    "cortex_norm": [c_void_p, c_void_p, c_int64, c_int64, c_float, c_void_p, c_int, c_int],
    "cortex_turn": [
        *(c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int64, c_float),
        *(c_int, c_int),
    ],
    "cortex_gate": [c_void_p, c_int64, c_int64, c_void_p, c_int, c_int],
}
_PRODUCT_SIGNATURES = {
    "cortex_prompt": [c_void_p, c_void_p, c_void_p, c_void_p, c_int],
    "cortex_product": [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int],
    "cortex_decoder": [c_void_p, c_void_p, c_int],
}


def int8_workspace(num_rows: int, width: int) -> Tensor:
    """What an int8 product needs beside its tensors: of each row a scale and `width` bytes."""
    return torch.empty(num_rows * (4 + width), dtype=torch.uint8)


@cache
def native() -> "Native | None":
    """Return the kernels; None where they could not be compiled."""
    library = kernels()
    return None if library is None else Native(library)


class Native:
    """`has_products`: the processor multiplies pairs of bfloat16 and fours of int8."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.has_products = bool(library.cortex_has_products())
        signatures = _SIGNATURES | (_PRODUCT_SIGNATURES if self.has_products else {})
        for name, argument_types in signatures.items():
            function = getattr(library, name)
            function.argtypes, function.restype = argument_types, None
        self._library = library

    @property
    def prefers_products(self) -> bool:
        """Whether products are here, and the fastest: AMX is faster, and torch has it."""
        return self.has_products and not torch.cpu._is_amx_tile_supported()

    # --- layers --------------------------------------------------------------------------------

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """rows [T, width] -> each divided by its root mean square, times weight [width]."""
        out = torch.empty_like(rows)
        self._library.cortex_norm(
            rows.data_ptr(),
            weight.data_ptr(),
            *rows.shape,
            epsilon,
            out.data_ptr(),
            rows.dtype == torch.float32,
            torch.get_num_threads(),
        )
        return out

    def turn(
        self, rows: Tensor, turns: Tensor, num_heads: int, weights: Tensor | None, epsilon: float
    ) -> None:
        """Turn the first heads of each row in place; before, norm them, if there are weights.

        rows [T, width], turns [T, D]: cosines, then sines, of half a head each, in float32;
        weights [num_heads, D].
        """
        self._library.cortex_turn(
            rows.data_ptr(),
            None if weights is None else weights.data_ptr(),
            turns.data_ptr(),
            *rows.shape,
            num_heads,
            turns.shape[1],
            epsilon,
            rows.dtype == torch.float32,
            torch.get_num_threads(),
        )

    def gate(self, rows: Tensor) -> Tensor:
        """rows [T, 2 * width], gates first -> silu(gates) * the rest [T, width]."""
        width = rows.shape[1] // 2
        out = rows.new_empty(rows.shape[0], width)
        self._library.cortex_gate(
            rows.data_ptr(),
            rows.shape[0],
            width,
            out.data_ptr(),
            rows.dtype == torch.float32,
            torch.get_num_threads(),
        )
        return out

    # --- attention -----------------------------------------------------------------------------

    def store(self, heads: Heads, pieces: Tensor, key: Tensor, value: Tensor) -> None:
        """Write rows of keys [T, Hkv, D] and values into their pieces' slots [P, PIECE_FIELDS]."""
        self._library.cortex_store(
            ctypes.addressof(heads),
            pieces.data_ptr(),
            pieces.shape[0],
            key.data_ptr(),
            value.data_ptr(),
            key.dtype == torch.float32,
        )

    def decode(self, heads: Heads, pieces: Tensor, query: Tensor, out: Tensor) -> None:
        """Attend with one row per piece. query [T, H, D], out [T, H, Dv]."""
        self._library.cortex_decode(
            ctypes.addressof(heads),
            pieces.data_ptr(),
            pieces.shape[0],
            query.data_ptr(),
            out.data_ptr(),
            query.dtype == torch.float32,
            torch.get_num_threads(),
        )

    def prompt(self, heads: Heads, piece: Tensor, query: Tensor, out: Tensor) -> None:
        """Attend with many rows of one piece [PIECE_FIELDS], causally, in bfloat16."""
        self._library.cortex_prompt(
            ctypes.addressof(heads),
            piece.data_ptr(),
            query.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )

    # --- products ------------------------------------------------------------------------------

    def product(self, product: Product, inputs: Tensor) -> Tensor:
        """inputs [T, K] -> [T, N], in bfloat16."""
        num_rows = inputs.shape[0]
        out = inputs.new_empty(num_rows, product.num_outputs)
        room = int8_workspace(num_rows, product.width) if product.scales else None
        self._library.cortex_product(
            ctypes.addressof(product),
            inputs.data_ptr(),
            num_rows,
            out.data_ptr(),
            None if room is None else room.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def run_decoder(self, decoder: Decoder, step: Step) -> None:
        """Compute all layers for a step; everything that it says is written to its tensors."""
        self._library.cortex_decoder(
            ctypes.addressof(decoder), ctypes.addressof(step), torch.get_num_threads()
        )
