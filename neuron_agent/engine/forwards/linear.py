"""Linear layers laid out for the CPU: oneDNN's own order of weights, kept instead of the plain one.

With plain weights oneDNN lays them out anew in every call, which at a few rows costs as much as
the product. It knows layers, and neither models nor int8 (see `quantize`).
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED_DTYPES = (torch.float32, torch.bfloat16)

ROWS_HINT = 16
"""How many rows the layout is chosen for. Measured: as good as any other from 1 row to 272, while
a layout for one row is half as fast at four."""


def is_bfloat16_fast(device: torch.device) -> bool:
    """Whether bfloat16 is computed as such: on GPUs, and on CPUs with AMX or AVX-512 BF16.

    Elsewhere it is emulated: slower than float32, and less exact.
    """
    if device.type == "cuda":
        return True
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


class PackedLinear(nn.Module):
    """A linear layer [.., K] -> [.., N] on the CPU, its weights in oneDNN's order."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", _reorder(linear.weight.detach()))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    @property
    def weight(self) -> Tensor:
        """[N, K], made anew: for code that reads it for itself."""
        return self.packed.to_dense()

    def forward(self, inputs: Tensor) -> Tensor:
        return _product(inputs, self.packed, self.bias)


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this machine has packed products of a dtype, and they come out right."""
    if dtype not in PACKED_DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(72, 40, generator=generator).to(dtype)
    inputs = torch.randn(3, 40, generator=generator).to(dtype)
    try:
        ours = _product(inputs, _reorder(weight), None)
    except (RuntimeError, AttributeError):
        return False  # built without it, or the processor is too old
    expected = F.linear(inputs, weight)
    return bool(torch.allclose(ours.float(), expected.float(), atol=0.1, rtol=0.02))


def join_linears(linears: Sequence[nn.Linear]) -> nn.Linear:
    """Return one layer that gives the outputs of all, one behind the other.

    The weights of the parts become row views of the whole: they work on and take no memory.
    """
    first = linears[0]
    joined = nn.Linear(
        first.in_features,
        sum(linear.out_features for linear in linears),
        bias=first.bias is not None,
        device="meta",
    )
    joined.weight = _joined([linear.weight for linear in linears])
    if first.bias is not None:
        joined.bias = _joined([linear.bias for linear in linears])
    return joined


def _joined(parts: Sequence[Tensor]) -> nn.Parameter:
    whole = torch.cat([part.detach() for part in parts])
    row = 0
    for part in parts:
        part.data = whole[row : row + len(part)]
        row += len(part)
    return nn.Parameter(whole, requires_grad=False)


def _reorder(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
    return packed


def _product(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return out
