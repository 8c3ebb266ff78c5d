"""The steps of a layer (see `forwards.layer_steps`), each as one pass of a compiled kernel."""

from typing import Final

import torch
from torch import Tensor

from neuron_agent.engine.cpu.native import DTYPES, LANES, Native
from neuron_agent.engine.forwards.layer_steps import StepShape

HALVES: Final = 2 * LANES
"""A head is turned by halves: what its size must be a multiple of."""


def can_step(dtype: torch.dtype, head_size: int, *widths: int) -> bool:
    """Whether the kernels do layers of such rows."""
    is_even = head_size % HALVES == 0 and all(width % LANES == 0 for width in widths)
    return is_even and dtype in DTYPES


class NativeSteps:
    def __init__(self, shape: StepShape, kernels: Native) -> None:
        self._shape = shape
        self._kernels = kernels

    def norm(self, states: Tensor, weight: Tensor) -> Tensor:
        return self._kernels.norm(states, weight, self._shape.epsilon)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """positions [T] -> [T, D] in float32: cosines, then sines, of half a head each."""
        angles = positions.float().unsqueeze(1) * self._shape.frequencies  # [T, D / 2]
        return torch.cat((angles.cos(), angles.sin()), 1).mul_(self._shape.turn_scale)

    def turned(self, rows: Tensor, turns: Tensor, norms: Tensor | None) -> Tensor:
        shape = self._shape
        self._kernels.turn(rows, turns, shape.num_turned, norms, shape.epsilon)
        return rows.view(rows.shape[0], -1, shape.head_size)[:, : shape.num_turned]

    def gated(self, rows: Tensor) -> Tensor:
        return self._kernels.gate(rows)
