"""All layers of our own forward in one call of the compiled kernels.

What a recorded graph is on a GPU: the step without the cost of calling it. A step of few rows is
over when its weights were read; calling its kernels one by one from Python would take a third as
long again. It knows weights and slots, and no request.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from neuron_agent.engine.cpu.native import (
    MAX_HEAD_SIZE,
    PIECE_FIELDS,
    Decoder,
    Heads,
    Layer,
    Step,
    int8_workspace,
    native,
)
from neuron_agent.engine.cpu.products import NativeInt8Linear, NativeLinear


@dataclass(frozen=True, slots=True)
class DecoderShape:
    num_heads: int
    num_shared: int
    head_size: int
    hidden: int
    intermediate: int
    scale: float
    epsilon: float


class LayerWeights(Protocol):
    """Weights in bfloat16, contiguous; linear layers of `products`."""

    input_norm: Tensor  # [hidden]
    head_norms: Tensor | None  # [H + Hkv, D]
    query_key_value: nn.Module
    output: nn.Module
    mlp_norm: Tensor  # [hidden]
    gate_up: nn.Module
    down: nn.Module


def linears_of(layer: LayerWeights) -> tuple[Any, ...]:
    return layer.query_key_value, layer.output, layer.gate_up, layer.down


def can_compile(layers: Sequence[LayerWeights], head_size: int) -> bool:
    """Whether the kernels do such layers whole, provided that `NativeSteps` does their steps."""
    linears = [linear for layer in layers for linear in linears_of(layer)]
    are_native = all(isinstance(linear, NativeLinear | NativeInt8Linear) for linear in linears)
    return are_native and head_size <= MAX_HEAD_SIZE


class CompiledDecoder:
    """To be made if `can_compile`."""

    def __init__(self, shape: DecoderShape, layers: Sequence[LayerWeights], norm: Tensor) -> None:
        # The kernels know addresses only: their tensors are kept here.
        self._kept = [_tensors_of(layer) for layer in layers], norm.detach()
        self._layers = (Layer * len(layers))(*map(_described, layers))
        row_size = (shape.num_heads + 2 * shape.num_shared) * shape.head_size
        self._wide = max(row_size, 2 * shape.intermediate)
        self._is_int8 = any(
            isinstance(linear, NativeInt8Linear) for layer in layers for linear in linears_of(layer)
        )
        self._narrow = max(shape.num_heads * shape.head_size, shape.intermediate)
        self._decoder = Decoder(
            heads=Heads(
                *(shape.num_heads, shape.num_shared, shape.head_size, shape.head_size),
                *(row_size, row_size, row_size),
                shape.scale,
            ),
            hidden=shape.hidden,
            intermediate=shape.intermediate,
            num_layers=len(layers),
            layers=ctypes.addressof(self._layers),
            norm=norm.data_ptr(),
            epsilon=shape.epsilon,
        )

    def run(
        self, states: Tensor, turns: Tensor, wanted: Tensor, pieces: Tensor, num_single: int
    ) -> Tensor:
        """Compute a step; its keys and values go into their slots.

        states [T, hidden], which are overwritten, turns [T, D] as from `NativeSteps`, wanted [R],
        pieces [L, P, PIECE_FIELDS], of which the first `num_single` have one row
        -> the wanted rows after the last norm [R, hidden].
        """
        kernels = native()
        assert kernels is not None
        assert pieces.is_contiguous()
        assert pieces.shape[2] == PIECE_FIELDS
        num_rows, hidden = states.shape
        sizes = [hidden, self._wide, self._narrow]
        work = states.new_empty(num_rows * sum(sizes))
        normed, wide, narrow = torch.split(work, [num_rows * size for size in sizes])
        out = states.new_empty(wanted.shape[0], hidden)
        room = int8_workspace(num_rows, max(hidden, self._narrow)) if self._is_int8 else None
        step = Step(
            *(num_rows, pieces.shape[1], num_single, wanted.shape[0]),
            *(pieces.data_ptr(), turns.data_ptr(), wanted.data_ptr()),
            *(tensor.data_ptr() for tensor in (states, normed, wide, narrow, out)),
            None if room is None else room.data_ptr(),
        )
        kernels.run_decoder(self._decoder, step)
        return out


def _described(layer: LayerWeights) -> Layer:
    return Layer(
        layer.input_norm.data_ptr(),
        None if layer.head_norms is None else layer.head_norms.data_ptr(),
        layer.mlp_norm.data_ptr(),
        *(linear.product for linear in linears_of(layer)),
    )


def _tensors_of(layer: LayerWeights) -> list[Tensor]:
    norms = [layer.input_norm, layer.head_norms, layer.mlp_norm]
    buffers = [buffer for linear in linears_of(layer) for buffer in linear.buffers()]
    # Not parameters themselves: their memory may be replaced under them.
    return [tensor.detach() for tensor in (*norms, *buffers) if tensor is not None]
