"""What our own forward does between products and attention, in torch: works on every device.

The same in compiled kernels, for CPUs, is `cpu.steps`. It knows numbers of heads, not weights.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepShape:
    """What the steps of all layers of a model have in common."""

    num_turned: int
    """Heads of queries and of keys."""
    head_size: int
    epsilon: float
    frequencies: Tensor  # [D / 2]: radians a position turns a pair by
    turn_scale: float


class LayerSteps(Protocol):
    def norm(self, states: Tensor, weight: Tensor) -> Tensor:
        """states [T, hidden] -> divided by their root mean square, times weight [hidden]."""

    def turns(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """positions [T] -> what `turned` needs of them, once for all layers."""

    def turned(self, rows: Tensor, turns: Tensor, norms: Tensor | None) -> Tensor:
        """rows [T, all heads * D] -> queries' and keys' heads [T, num_turned, D], turned.

        `norms` [num_turned, D]: heads are normed before. Rows may be overwritten where they were
        turned, and nowhere else.
        """

    def gated(self, rows: Tensor) -> Tensor:
        """rows [T, 2 * width], gates first -> silu(gates) * the rest [T, width]."""


class TorchSteps:
    def __init__(self, shape: StepShape) -> None:
        self._shape = shape

    def norm(self, states: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(states, states.shape[1:], weight, self._shape.epsilon)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """positions [T] -> [T, 1, 2 * D]: cosines, then sines, the first half of them negative.

        So `x * cosines + (x with its halves swapped) * sines` turns a head by its position.
        """
        angles = positions.float().unsqueeze(1) * self._shape.frequencies  # [T, D / 2]
        cosines, sines = angles.cos(), angles.sin()
        both = torch.cat((cosines, cosines, -sines, sines), 1)  # [T, 2 * D]
        return both.mul_(self._shape.turn_scale).to(dtype).unsqueeze(1)

    def turned(self, rows: Tensor, turns: Tensor, norms: Tensor | None) -> Tensor:
        size = self._shape.head_size
        heads = rows.view(len(rows), -1, size)[:, : self._shape.num_turned]
        if norms is not None:
            heads = F.rms_norm(heads, (size,), None, self._shape.epsilon).mul_(norms)
        swapped = heads.roll(size // 2, -1)
        return torch.mul(heads, turns[..., :size]).addcmul_(swapped, turns[..., size:])

    def gated(self, rows: Tensor) -> Tensor:
        gate, rest = rows.chunk(2, -1)  # [T, width] each
        return F.silu(gate).mul_(rest)
