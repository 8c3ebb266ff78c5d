import pytest
import torch
from torch import nn

from neuron_agent.engine.forwards.linear import PackedLinear, can_pack
from neuron_agent.engine.forwards.packing import pack_linears, packed
from neuron_agent.engine.forwards.quantize import PackedInt8Linear, can_pack_int8, quantize_model
from tests.neuron_agent.tiny_models import build_tiny

needs_packing = pytest.mark.skipif(
    not (can_pack(torch.float32) and can_pack_int8()), reason="this machine does not pack"
)
IDS = torch.arange(12)[None]


@needs_packing
@pytest.mark.parametrize("kind", ["gemma3", "qwen3", "mamba"])
def test_a_packed_model_computes_what_it_did(kind: str) -> None:
    model = build_tiny(kind).requires_grad_(False)
    before = model(input_ids=IDS, use_cache=False).logits
    pack_linears(model)
    after = model(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert any(isinstance(module, PackedLinear) for module in model.modules())


@needs_packing
def test_int8_layers_are_packed_too_and_a_shared_head_is_not() -> None:
    model = build_tiny("gemma3").requires_grad_(False)
    quantize_model(model)
    pack_linears(model)
    assert type(model.lm_head) is nn.Linear
    kinds = {type(layer) for layer in model.modules() if hasattr(layer, "in_features")}
    assert kinds == {nn.Linear, PackedInt8Linear}


def test_what_cannot_be_packed_stays() -> None:
    half = nn.Linear(8, 8, dtype=torch.float16)
    assert packed(half) is half
    other = nn.LayerNorm(8)
    assert packed(other) is other
