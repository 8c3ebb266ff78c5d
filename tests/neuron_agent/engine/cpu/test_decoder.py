"""All layers in one call give what they give one by one, whatever shares the step."""

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.forwards.forward import Computed
from neuron_agent.engine.forwards.fused import FusedForward
from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.forwards.slot_cache import FIRST_TOKENS, SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from tests.neuron_agent.engine.cpu.conditions import needs_products
from tests.neuron_agent.engine.forwards.lanes import chunk, ids_of, logits_of, reference, varied

pytestmark = [
    needs_products,
    pytest.mark.usefixtures("num_threads"),
    pytest.mark.skipif(torch.cpu._is_amx_tile_supported(), reason="products are oneDNN's here"),
]

KINDS = pytest.mark.parametrize(
    "kind", ["llama", "llama_tied", "mistral", "qwen2", "qwen3", "qwen3_mixed"]
)
QUANTS = pytest.mark.parametrize("quant", [None, "int8"])
IDS = ids_of(4, 100)


def forward_of(kind: str, quant: str | None = None, *, compiled: bool = True) -> FusedForward:
    model = varied(kind).to(torch.bfloat16)
    if quant is not None:
        quantize_model(model, quant)
    forward = FusedForward(model, SlotCache())
    forward.settle()
    assert forward._compiled is not None
    if not compiled:
        forward._compiled = None
    return forward


def assert_alike(ours: Tensor, expected: Tensor, least: float = 0.995) -> None:
    cosines = torch.cosine_similarity(ours.float(), expected.float(), dim=-1)
    assert cosines.min() > least


@KINDS
@QUANTS
def test_a_prompt_and_what_follows_are_as_layer_by_layer(kind: str, quant: str | None) -> None:
    whole, parts = forward_of(kind, quant), forward_of(kind, quant, compiled=False)
    for start, end in ((0, 70), (70, 71), (71, 75), (75, 76)):
        piece = chunk(0, IDS, start, end)
        ours, theirs = logits_of(whole, piece), logits_of(parts, piece)
        assert_alike(ours, theirs, 0.98 if quant else 0.995)
    assert_alike(ours[0], reference(kind, IDS[:76])[-1], 0.9 if quant else 0.99)
    assert whole.cache.token_bytes == parts.cache.token_bytes


@KINDS
def test_a_token_is_the_same_to_the_last_bit_beside_any_others(kind: str) -> None:
    alone, crowd = forward_of(kind), forward_of(kind)
    others = [(slot, ids_of(slot, 90)) for slot in (1, 2, 3)]
    logits_of(alone, chunk(0, IDS, 0, 60))
    logits_of(crowd, *(chunk(slot, ids, 0, 30 + slot) for slot, ids in others))
    logits_of(crowd, chunk(0, IDS, 0, 60))
    for place in range(60, 70):
        mine = logits_of(alone, chunk(0, IDS, place, place + 1))[0]
        neighbours = [chunk(s, ids, place - 30 + s, place - 29 + s) for s, ids in others]
        long = chunk(9, ids_of(9, 40), 0, 40)
        crowded = logits_of(
            crowd, long, neighbours[0], chunk(0, IDS, place, place + 1), *neighbours[1:]
        )
        assert torch.equal(crowded[2], mine)


def test_slots_grow_are_copied_and_begin_anew() -> None:
    forward = forward_of("qwen3")
    end = FIRST_TOKENS + 5
    logits_of(forward, chunk(0, IDS, 0, FIRST_TOKENS - 1))
    for place in range(FIRST_TOKENS - 1, end):
        mine = logits_of(forward, chunk(0, IDS, place, place + 1))
    assert_alike(mine[0], reference("qwen3", IDS[:end])[-1], 0.99)
    other = ids_of(8, 50)
    logits_of(forward, chunk(1, other, 0, 50))
    copied = logits_of(forward, chunk(1, IDS, 40, 60), copies=(Copy(0, 1, 40),))
    assert_alike(copied[0], reference("qwen3", IDS[:60])[-1], 0.99)
    anew = logits_of(forward, chunk(0, other, 0, 50))
    assert_alike(anew[0], reference("qwen3", other)[-1], 0.99)
    forward.release(0)
    forward.release(1)
    assert forward.cache.allocated_bytes == 0  # type: ignore[attr-defined]


@torch.inference_mode()
def test_only_rows_that_are_asked_for_come_out() -> None:
    def compute(forward: FusedForward) -> Computed:
        chunks = (
            Chunk("a", 0, 0, IDS[:9], 100, False, is_sampled=False),
            Chunk("b", 1, 0, IDS[:19], 100, False, is_sampled=False, is_embedded=True),
            Chunk("c", 2, 0, IDS[:5], 100, False, is_sampled=True),
        )
        return forward.compute(Batch(chunks))

    forward = forward_of("qwen3")
    ours, theirs = compute(forward), compute(forward_of("qwen3", compiled=False))
    assert ours.logits.shape == theirs.logits.shape
    assert_alike(ours.logits, theirs.logits)
    assert_alike(ours.hidden, theirs.hidden)
    nothing = forward.compute(Batch((Chunk("a", 0, 9, IDS[9:12], 100, False, is_sampled=False),)))
    assert nothing.logits.shape[0] == nothing.hidden.shape[0] == 0
    last = logits_of(forward, chunk(0, IDS, 12, 19))
    assert_alike(last[0], reference("qwen3", IDS[:19])[-1], 0.99)


@torch.inference_mode()
def test_what_is_no_number_stays_in_its_sequence() -> None:
    forward = forward_of("llama")
    logits_of(forward, chunk(0, IDS, 0, 30), chunk(1, IDS, 0, 30))
    slots = forward.cache._slots  # type: ignore[attr-defined]
    slots[0].layers[0][0].fill_(float("nan"))
    broken, sound = logits_of(forward, chunk(0, IDS, 30, 31), chunk(1, IDS, 30, 31))
    assert broken.isnan().all()
    assert_alike(sound, reference("llama", IDS[:31])[-1], 0.99)


def test_float32_is_computed_layer_by_layer() -> None:
    forward = FusedForward(varied("llama"), SlotCache())
    forward.settle()
    assert forward._compiled is None
