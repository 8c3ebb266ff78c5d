"""int8 in place: a loaded model's linear layers, their weights rounded to eight bits.

A weight is an int8 per element and a scale per output row. On a CPU an input is rounded too, at
each call, with a scale per token of its own, and the product is oneDNN's in integers: what a token
gives does not depend on the tokens beside it. Elsewhere weights are widened for each product: half
the memory, and no gain in speed. It knows layers, and not where weights come from.

Symmetric per-channel weights with dynamic per-token activations, as in LLM.int8() (Dettmers et
al., 2022) without its outliers.
"""

from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

METHODS: Final = ("int8",)
MAX_INT8 = 127
ZERO_POINT = 128
"""oneDNN is fast with inputs as unsigned bytes only: they are moved up by this."""

MIDDLE = torch.tensor(ZERO_POINT + 0.5)
"""What is cut after this was added is rounded half up: a conversion cuts."""

ROWS_AT_ONCE = 1024
"""Of a weight that is rounded: a large table takes gigabytes as float32."""

LEAST_SCALE = 1e-30
"""For rows of zeros. Any number does; it must not make infinities of what is divided by it."""


class Int8Linear(nn.Module):
    """A linear layer [.., K] -> [.., N] over int8 weights [N, K] with scales [N]."""

    rounded: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, rounded: Tensor, scales: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = rounded.shape
        self.dtype = dtype
        self.register_buffer("rounded", rounded)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> Tensor:
        """[N, K] in the dtype of old, made anew: for code that reads it for itself."""
        return (self.rounded * self.scales.unsqueeze(1)).to(self.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [.., K] -> [.., N], in the inputs' dtype."""
        out = F.linear(inputs, self.rounded.to(inputs.dtype)).mul_(self.scales)
        return out if self.bias is None else out.add_(self.bias)


class PackedInt8Linear(nn.Module):
    """The same on a CPU, in integers, its weights in oneDNN's order."""

    packed: Tensor
    scales: Tensor
    zero_points: Tensor
    bias: Tensor | None

    def __init__(self, linear: Int8Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.dtype
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(linear.rounded, None))
        # Inputs are multiplied by this to fill their byte; weights take it back.
        self.register_buffer("scales", linear.scales / MAX_INT8)
        self.register_buffer("zero_points", torch.zeros(linear.out_features, dtype=torch.int32))
        self.register_buffer("bias", linear.bias)

    @property
    def weight(self) -> Tensor:
        """[N, K] in the dtype of old, made anew: for code that reads it for itself."""
        columns = self._product(torch.eye(self.in_features))  # [K, N]
        return columns.T.to(self.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [.., K] -> [.., N], in the inputs' dtype."""
        out = self._product(inputs.reshape(-1, self.in_features))
        if self.bias is not None:
            out.add_(self.bias)
        return out.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _product(self, inputs: Tensor) -> Tensor:
        """inputs [T, K] -> [T, N] without bias, half precision widened."""
        # As float32, in passes that the CPU vectorises: of half precision it does not. As few of
        # them as can be: at one row, calling them costs more than the product.
        wide = inputs.float()
        peaks = wide.abs().amax(-1, keepdim=True).clamp_(min=LEAST_SCALE)
        shifted = torch.addcdiv(MIDDLE, wide, peaks, value=MAX_INT8)
        rounded = shifted.to(torch.int32).to(torch.uint8)  # int32 has a fast conversion
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,  # the tokens' scales differ: they come after the product
            ZERO_POINT,
            self.packed,
            self.scales,
            self.zero_points,
            None,
            1.0,
            0,
            torch.float32 if inputs.dtype == torch.float16 else inputs.dtype,
            "none",
            [],
            "",
        )
        return out.mul_(peaks)


@cache
def can_pack_int8() -> bool:
    """Whether this machine has int8 products, and they come out right."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-MAX_INT8, MAX_INT8, (72, 40), dtype=torch.int8, generator=generator)
    plain = Int8Linear(weight, torch.full((72,), 0.002), None, torch.float32)
    inputs = torch.randn(3, 40, generator=generator)
    try:
        ours = PackedInt8Linear(plain)(inputs)
    except (RuntimeError, AttributeError):
        return False  # built without it, or the processor is too old
    return bool(torch.allclose(ours, plain(inputs), atol=0.05, rtol=0.05))


def quantize_linear(linear: nn.Linear, dtype: torch.dtype | None = None) -> Int8Linear:
    """Return the layer with its weights rounded, the largest of a row to 127.

    `dtype` is what it is to compute with; None = what its weights are stored in.
    """
    weight = linear.weight.detach()
    rounded = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), dtype=torch.float32)
    for first in range(0, len(weight), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        part = weight[rows].float()
        scales[rows] = (part.abs().amax(1) / MAX_INT8).clamp_(min=LEAST_SCALE)
        rounded[rows] = (part / scales[rows].unsqueeze(1)).round_()
    dtype = dtype or linear.weight.dtype
    bias = None if linear.bias is None else linear.bias.detach().to(dtype)
    return Int8Linear(rounded, scales, bias, dtype)


def join_int8(linears: Sequence[Int8Linear]) -> Int8Linear:
    """Return one layer that gives the outputs of all, one behind the other: exactly theirs.

    The weights of the parts become row views of the whole: they work on and take no memory.
    """
    whole = torch.cat([linear.rounded for linear in linears])
    row = 0
    for linear in linears:
        linear.rounded = whole[row : row + linear.out_features]
        row += linear.out_features
    biases = [linear.bias for linear in linears if linear.bias is not None]
    return Int8Linear(
        whole,
        torch.cat([linear.scales for linear in linears]),
        torch.cat(biases) if biases else None,
        linears[0].dtype,
    )


def quantize_model(
    model: PreTrainedModel, method: str = "int8", dtype: torch.dtype | None = None
) -> None:
    """Replace a model's linear layers by int8 ones, one at a time: the peak is one layer's.

    An output head that shares its weights with the embedding stays: rounding a copy would take
    memory instead of saving it. Raises ValueError for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"quantisation {method!r} is not one of {', '.join(METHODS)}")
    embedding = model.get_input_embeddings().weight
    # No list of all layers: it would keep each one's weights until the last is done.
    for parent in [module for module in model.modules() if type(module) is not nn.Linear]:
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.weight is not embedding:
                setattr(parent, name, quantize_linear(child, dtype))
