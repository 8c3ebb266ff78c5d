import pytest
import torch
from torch import nn

from neuron_agent.engine.cpu.products import NativeEmbedding, NativeInt8Linear, NativeLinear
from neuron_agent.engine.forwards.choice import vocabulary_size
from neuron_agent.engine.forwards.forward import PackedForward
from neuron_agent.engine.forwards.fused import FusedForward
from neuron_agent.engine.forwards.linear import PackedLinear, can_pack
from neuron_agent.engine.forwards.packing import pack_linears, packed
from neuron_agent.engine.forwards.quantize import PackedInt8Linear, can_pack_int8, quantize_model
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk
from tests.neuron_agent.engine.cpu.conditions import needs_products
from tests.neuron_agent.engine.forwards.lanes import chunk, logits_of, varied
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


@needs_products
@pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="products are oneDNN's here")
@pytest.mark.parametrize("form", ["fused", "packed"])
@pytest.mark.parametrize("quant", [None, "int8"])
def test_a_head_that_shares_its_weights_with_the_embedding_shares_them_packed(
    form: str, quant: str | None
) -> None:
    model = varied("llama_tied").to(torch.bfloat16)
    if quant is not None:
        quantize_model(model, quant)
    before = model(input_ids=IDS, use_cache=False).logits[0, -1:]
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    lane = FusedForward if form == "fused" else PackedForward
    forward = lane(model, SlotCache())
    forward.settle()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    assert type(head) is (NativeInt8Linear if quant else NativeLinear)
    assert isinstance(model.get_input_embeddings(), NativeEmbedding)
    now = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    table_bytes = 2 * head.out_features * head.in_features
    assert now < held + 4096 - (table_bytes / 4 if quant else 0)
    assert vocabulary_size(model) == before.shape[1]
    after = logits_of(forward, chunk(0, IDS[0].tolist(), 0, IDS.shape[1]))
    least = 0.94 if quant else 0.99
    assert torch.cosine_similarity(after.float(), before.float()).min() > least


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@torch.inference_mode()
def test_embeddings_come_out_of_a_settled_forward_too(kind: str) -> None:
    """The head that shows the last hidden state is another module after packing."""
    forward = PackedForward(varied(kind), SlotCache())
    piece = Chunk("a", 0, 0, tuple(IDS[0].tolist()), 20, False, is_sampled=False, is_embedded=True)
    before = forward.compute(Batch((piece,))).hidden
    forward.settle()
    torch.testing.assert_close(
        forward.compute(Batch((piece,))).hidden, before, atol=1e-4, rtol=1e-4
    )
