import pytest
import torch
from torch import Tensor

from neuron_agent.engine.forwards.attention import UnsupportedAttention
from neuron_agent.engine.forwards.choice import choose_forward, vocabulary_size
from neuron_agent.engine.forwards.forward import Computed, PackedForward, SlowLane
from neuron_agent.engine.forwards.fused import FusedForward
from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.batch import Batch
from tests.neuron_agent.engine.forwards.lanes import (
    assert_same,
    chunk,
    ids_of,
    logits_of,
    reference,
    varied,
)

IDS = ids_of(6, 23)
FLOAT = torch.float32


@pytest.mark.parametrize(
    ("kind", "lane"),
    [
        ("llama", FusedForward),
        ("llama_tied", FusedForward),
        ("mistral", FusedForward),
        ("qwen2", FusedForward),
        ("qwen3_mixed", FusedForward),
        ("gemma3", PackedForward),
        ("gemma3_mixed", PackedForward),
        ("gemma2", SlowLane),
        ("lfm2", SlowLane),
        ("mamba", SlowLane),
    ],
)
def test_each_kind_gets_the_fastest_forward_that_is_right(kind: str, lane: type) -> None:
    forward = choose_forward(varied(kind), FLOAT).forward
    assert type(forward) is lane
    assert_same(logits_of(forward, chunk(0, IDS, 0, 20))[0], reference(kind, IDS)[19])
    assert_same(logits_of(forward, chunk(0, IDS, 20, 21))[0], reference(kind, IDS)[20])


def test_the_price_of_a_token_is_that_of_its_keys_and_values() -> None:
    two_layers = 2 * 2 * 2 * 32 * 4  # keys and values of two heads of 32 floats
    for kind in ("llama", "gemma3", "lfm2"):
        assert choose_forward(varied(kind), FLOAT).kv_token_bytes == two_layers


def test_probes_leave_nothing_behind() -> None:
    forward = choose_forward(varied("qwen3"), FLOAT).forward
    assert isinstance(forward, FusedForward)
    assert forward.cache.num_slots == 0  # type: ignore[attr-defined]


def test_a_fused_forward_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FusedForward.tokens_to_hidden

    def upside_down(self: FusedForward, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        return -right(self, ids, positions, rows)

    monkeypatch.setattr(FusedForward, "tokens_to_hidden", upside_down)
    forward = choose_forward(varied("llama"), FLOAT).forward
    assert type(forward) is PackedForward
    assert_same(logits_of(forward, chunk(0, IDS, 0, 23))[0], reference("llama", IDS)[-1])


def test_an_attention_that_is_not_done_leads_to_the_slow_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: PackedForward, batch: Batch) -> Computed:
        raise UnsupportedAttention("attention with horns")

    monkeypatch.setattr(PackedForward, "compute", refuse)
    model = varied("gemma3")
    forward = choose_forward(model, FLOAT).forward
    assert type(forward) is SlowLane
    assert len(model.lm_head._forward_pre_hooks) == 1, "what was not taken has left no hook"
    assert_same(logits_of(forward, chunk(0, IDS, 0, 23))[0], reference("gemma3", IDS)[-1])


def test_a_window_that_does_not_reach_attention_leads_to_the_slow_lane() -> None:
    """The probes are shorter than any real window: only what layers ask for can tell."""
    model = varied("gemma3_mixed")
    model.config.layer_types = ["sliding_attention", "sliding_attention"]
    assert type(choose_forward(model, FLOAT).forward) is SlowLane


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "lfm2", "mamba", "qwen2"])
def test_int8_goes_through_every_lane(kind: str) -> None:
    model = varied(kind)
    quantize_model(model)
    forward = choose_forward(model, FLOAT, "int8").forward
    logits = logits_of(forward, chunk(0, IDS, 0, 23))[0]
    assert torch.cosine_similarity(logits, reference(kind, IDS)[-1], dim=-1) > 0.98


def test_a_model_of_nan_is_refused() -> None:
    model = varied("qwen3")
    model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(LoadRefused) as refused:
        choose_forward(model, FLOAT)
    assert refused.value.code == ErrorCode.LOAD_FAILED


def test_the_vocabulary_is_what_the_embedding_has() -> None:
    assert vocabulary_size(varied("qwen3")) == 211
