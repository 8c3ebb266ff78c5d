import pytest

from neuron_agent.engine.forwards.layer_kinds import attention_windows
from tests.neuron_agent.tiny_models import build_tiny


@pytest.mark.parametrize(
    ("kind", "windows"),
    [
        ("llama", {0: None, 1: None}),
        ("mistral", {0: 8, 1: 8}),
        ("gemma3", {0: 8, 1: 8}),
        ("lfm2", None),
        ("mamba", None),
    ],
)
def test_layers_say_how_far_they_see_or_that_they_keep_something_else(
    kind: str, windows: dict[int, int | None] | None
) -> None:
    assert attention_windows(build_tiny(kind)) == windows


@pytest.mark.parametrize(
    ("rope_type", "is_shareable"),
    [("default", True), ("llama3", True), ("yarn", True), ("dynamic", False), ("longrope", False)],
)
def test_positions_turned_by_the_longest_sequence_are_not_shared(
    rope_type: str, is_shareable: bool
) -> None:
    model = build_tiny("llama")
    model.config.rope_parameters = {"rope_type": rope_type, "rope_theta": 10000.0}
    assert (attention_windows(model) is not None) == is_shareable


def test_chunks_of_attention_are_not_windows() -> None:
    model = build_tiny("llama")
    model.config.attention_chunk_size = 8
    assert attention_windows(model) is None
