"""Which linear layers of a model are laid out for the CPU.

Packing gives the same products in half the time at few rows. A packed layer still shows its
`weight` to code that reads it instead of calling the layer, but only as a copy made on the spot.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from neuron_agent.engine.cpu.products import (
    NativeEmbedding,
    NativeInt8Linear,
    NativeLinear,
    can_multiply,
)
from neuron_agent.engine.forwards.linear import PackedLinear, can_pack
from neuron_agent.engine.forwards.quantize import (
    Int8Linear,
    PackedInt8Linear,
    can_pack_int8,
    quantize_linear,
)


def packed(linear: nn.Module) -> nn.Module:
    """Return the layer packed, or itself where there is nothing to pack."""
    if _has_native(linear):
        if isinstance(linear, Int8Linear):
            return NativeInt8Linear(linear.rounded, linear.scales, linear.bias)
        assert isinstance(linear, nn.Linear)
        return NativeLinear(linear)
    if type(linear) is nn.Linear and linear.weight.device.type == "cpu":
        return PackedLinear(linear) if can_pack(linear.weight.dtype) else linear
    if isinstance(linear, Int8Linear) and linear.rounded.device.type == "cpu":
        return PackedInt8Linear(linear) if can_pack_int8() else linear
    return linear


def _has_native(linear: nn.Module) -> bool:
    if type(linear) is nn.Linear:
        weight = linear.weight
        is_bfloat16 = weight.dtype == torch.bfloat16
    elif isinstance(linear, Int8Linear):
        weight = linear.rounded
        is_bfloat16 = linear.dtype == torch.bfloat16
    else:
        return False
    return is_bfloat16 and weight.device.type == "cpu" and can_multiply(linear.in_features)


def pack_linears(model: PreTrainedModel) -> None:
    """Pack a model's linear layers one by one, so that the peak is one layer's."""
    embedding = model.get_input_embeddings().weight
    # No list of all layers: it would keep each one's weights until the last is done.
    kinds = (nn.Linear, Int8Linear)
    for parent in [module for module in model.modules() if type(module) not in kinds]:
        for name, child in list(parent.named_children()):
            if type(child) is Int8Linear or (
                type(child) is nn.Linear and child.weight is not embedding
            ):
                setattr(parent, name, packed(child))
    pack_head(model)


def pack_head(model: PreTrainedModel) -> None:
    """Pack the output head. Where it shares its weights with the embedding, they share them packed
    (and rounded, in an int8 model), or it stays as it is: packing would take a copy.
    """
    any_model: Any = model
    head, embedding = any_model.get_output_embeddings(), any_model.get_input_embeddings()
    is_shared = type(head) is nn.Linear and head.weight is getattr(embedding, "weight", None)
    if not is_shared:
        if head is not None:
            any_model.set_output_embeddings(packed(head))
    elif type(embedding) is nn.Embedding and _has_native(head):
        # In a model of int8 layers the table is rounded, too, now that nothing else needs it whole.
        layers = {type(module) for module in model.modules()}
        is_int8 = not layers.isdisjoint({Int8Linear, NativeInt8Linear})
        shared = packed(quantize_linear(head) if is_int8 else head)
        any_model.set_output_embeddings(shared)
        assert isinstance(shared, NativeLinear | NativeInt8Linear)
        any_model.set_input_embeddings(NativeEmbedding(shared))
