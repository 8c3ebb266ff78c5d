import pytest
import torch
from torch import Tensor

from neuron_agent.engine.forwards.forward import PackedForward
from neuron_agent.engine.forwards.fused import FusedForward, can_be_fused
from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk
from tests.neuron_agent.engine.forwards.lanes import (
    assert_same,
    chunk,
    ids_of,
    logits_of,
    reference,
    varied,
)

IDS = ids_of(4, 19)


def whole(forward: FusedForward | PackedForward) -> Tensor:
    return logits_of(forward, chunk(0, IDS, 0, len(IDS)))[0]


@pytest.mark.parametrize(
    ("kind", "is_fusable"),
    [
        ("llama", True),
        ("mistral", True),
        ("qwen2", True),
        ("qwen3", True),
        ("llama_tied", True),
        ("gemma3", False),
        ("lfm2", False),
        ("mamba", False),
    ],
)
def test_only_the_one_shape_is_fused(kind: str, is_fusable: bool) -> None:
    assert can_be_fused(varied(kind)) == is_fusable


def test_another_activation_partial_rotation_or_foreign_weights_are_not_fused() -> None:
    model = varied("llama")
    model.config.hidden_act = "gelu"
    assert not can_be_fused(model)
    model = varied("llama")
    model.base_model.rotary_emb.inv_freq = model.base_model.rotary_emb.inv_freq[:4]
    assert not can_be_fused(model)

    class ForeignLinear(torch.nn.Linear):
        pass

    model = varied("llama")
    model.base_model.layers[0].mlp.up_proj = ForeignLinear(64, 96)
    assert not can_be_fused(model)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama_tied"])
def test_the_models_own_forward_works_on_over_the_same_memory(kind: str) -> None:
    model = varied(kind)
    before = sum(tensor.untyped_storage().nbytes() for tensor in set(model.parameters()))
    FusedForward(model, SlotCache())
    assert_same(model(input_ids=torch.tensor([IDS])).logits[0], reference(kind, IDS))
    stores = {tensor.untyped_storage().data_ptr(): tensor for tensor in model.parameters()}
    held = sum(tensor.untyped_storage().nbytes() for tensor in stores.values())
    assert held <= before


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama_tied"])
def test_a_settled_forward_gives_the_same_and_holds_no_weight_twice(kind: str) -> None:
    model = varied(kind)
    before = sum(tensor.nbytes for tensor in model.parameters())
    forward = FusedForward(model, SlotCache())
    forward.settle()
    assert_same(whole(forward), reference(kind, IDS)[-1])
    assert sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) <= before + 4096


def test_int8_weights_are_fused_exactly_and_settled_nearly() -> None:
    model = varied("qwen3")
    quantize_model(model)
    expected = model(input_ids=torch.tensor([IDS])).logits[0, -1]
    forward = FusedForward(model, SlotCache())
    assert_same(whole(forward), expected)
    forward.settle()
    settled = whole(forward)
    assert torch.cosine_similarity(settled, expected, dim=-1) > 0.99
    assert torch.cosine_similarity(settled, reference("qwen3", IDS)[-1], dim=-1) > 0.99


@torch.inference_mode()
def test_only_rows_that_are_asked_for_come_out() -> None:
    forward = FusedForward(varied("qwen3"), SlotCache())
    chunks = (
        Chunk("a", 0, 0, IDS[:9], 19, False, is_sampled=False),
        Chunk("b", 1, 0, IDS, 19, False, is_sampled=False, is_embedded=True),
        Chunk("c", 2, 0, IDS[:5], 19, False, is_sampled=True),
    )
    computed = forward.compute(Batch(chunks))
    assert_same(computed.logits, reference("qwen3", IDS)[4:5])
    own = varied("qwen3").model(input_ids=torch.tensor([IDS])).last_hidden_state[0, -1:]
    assert_same(computed.hidden, own)
    nothing = forward.compute(Batch((Chunk("a", 0, 9, IDS[9:12], 19, False, is_sampled=False),)))
    assert nothing.logits.shape == (0, computed.logits.shape[1])
    assert nothing.hidden.shape == (0, own.shape[1])
    assert_same(logits_of(forward, chunk(0, IDS, 12, 19))[0], reference("qwen3", IDS)[-1])


def test_a_closed_forward_holds_no_cache() -> None:
    cache = SlotCache()
    forward = FusedForward(varied("qwen3"), cache)
    whole(forward)
    forward.close()
    assert cache.allocated_bytes == 0
