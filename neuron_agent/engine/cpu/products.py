"""Linear layers whose weights are laid out for the kernels of `native`.

Sixteen outputs are a group. In it lie four bytes of each output's row, then the next four of each:
[N / 16, K * item bytes / 4, 16], the last group filled up with zeros. It knows layers, and not
which of them a model has.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuron_agent.engine.cpu.native import LANES, Product, native

ZERO_POINT = 128
"""Inputs are unsigned bytes, moved up by this; corrections take it back."""

MOST_INPUTS = 2**17
"""So many products of bytes cannot add up to more than 32 bits hold."""


def can_multiply(in_features: int) -> bool:
    """Whether a linear layer of so many inputs should be one of these."""
    kernels = native()
    is_fitting = in_features % LANES == 0 and in_features <= MOST_INPUTS
    return is_fitting and kernels is not None and kernels.prefers_products


class NativeLinear(nn.Module):
    """A linear layer [.., K] -> [.., N] in bfloat16."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", grouped(linear.weight.detach()))
        bias = None if linear.bias is None else _filled(linear.bias.detach())
        self.register_buffer("bias", bias)

    @property
    def product(self) -> Product:
        """What the kernels need to know. It holds addresses: good while the tensors are."""
        return Product(
            packed=self.packed.data_ptr(),
            bias=_address(self.bias),
            num_outputs=self.out_features,
            width=self.in_features,
        )

    @property
    def weight(self) -> Tensor:
        """[N, K], made anew: for code that reads it for itself."""
        return ungrouped(self.packed, torch.bfloat16)[: self.out_features]

    def forward(self, inputs: Tensor) -> Tensor:
        return _multiplied(self.product, inputs)

    def rows(self, numbers: Tensor) -> Tensor:
        """numbers [..] -> those rows of the weight [.., K]."""
        return self.packed[numbers // LANES, :, numbers % LANES].view(torch.bfloat16)


class NativeInt8Linear(nn.Module):
    """The same over int8 weights, with inputs rounded to bytes at each call, a scale per row."""

    packed: Tensor
    scales: Tensor
    corrections: Tensor
    bias: Tensor | None

    def __init__(self, rounded: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = rounded.shape
        self.register_buffer("packed", grouped(rounded))
        self.register_buffer("scales", _filled(scales.float()))
        corrections = rounded.sum(1, dtype=torch.int32) * ZERO_POINT
        self.register_buffer("corrections", _filled(corrections))
        self.register_buffer("bias", None if bias is None else _filled(bias.to(torch.bfloat16)))

    @property
    def product(self) -> Product:
        """As with `NativeLinear`."""
        return Product(
            packed=self.packed.data_ptr(),
            scales=self.scales.data_ptr(),
            corrections=self.corrections.data_ptr(),
            bias=_address(self.bias),
            num_outputs=self.out_features,
            width=self.in_features,
        )

    @property
    def weight(self) -> Tensor:
        """[N, K] in bfloat16, made anew: for code that reads it for itself."""
        weight = ungrouped(self.packed, torch.int8) * self.scales.unsqueeze(1)
        return weight[: self.out_features].to(torch.bfloat16)

    def forward(self, inputs: Tensor) -> Tensor:
        return _multiplied(self.product, inputs)

    def rows(self, numbers: Tensor) -> Tensor:
        """numbers [..] -> those rows of the weight [.., K], in bfloat16."""
        rounded = self.packed[numbers // LANES, :, numbers % LANES].view(torch.int8)
        return (rounded * self.scales[numbers].unsqueeze(-1)).to(torch.bfloat16)


class NativeEmbedding(nn.Module):
    """An embedding whose table is the weight of a linear layer: the model's output head."""

    def __init__(self, head: NativeLinear | NativeInt8Linear) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = head.out_features, head.in_features
        self._head = head

    @property
    def weight(self) -> Tensor:
        """[num_embeddings, embedding_dim], made anew: for code that reads it for itself."""
        return self._head.weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids [..] -> [.., embedding_dim]"""
        return self._head.rows(ids)


def grouped(weight: Tensor) -> Tensor:
    """[N, K] -> [groups, steps, LANES], four bytes as one int32"""
    steps = weight.contiguous().view(torch.int32)  # [N, steps]
    if steps.shape[0] % LANES:
        steps = F.pad(steps, (0, 0, 0, -steps.shape[0] % LANES))
    return steps.view(-1, LANES, steps.shape[1]).transpose(1, 2).contiguous()


def ungrouped(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """The way back: [groups, steps, LANES] -> [N, filled up, K]"""
    return packed.transpose(1, 2).flatten(0, 1).contiguous().view(dtype)


def _multiplied(product: Product, inputs: Tensor) -> Tensor:
    """[.., K] -> [.., N]. Raises TypeError for another dtype: the kernels would misread it."""
    if inputs.dtype != torch.bfloat16:
        raise TypeError(f"inputs are {inputs.dtype}, the weights are for bfloat16")
    kernels = native()
    assert kernels is not None, "see can_multiply"
    out = kernels.product(product, inputs.reshape(-1, product.width).contiguous())
    return out.view(*inputs.shape[:-1], product.num_outputs)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _filled(vector: Tensor) -> Tensor:
    return F.pad(vector, (0, -len(vector) % LANES))
