"""Which files are the model, by their names alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import Unprocessable
from neuron_agent.sources.repository_files import (
    PREFERRED_QUANTS,
    choose_side_files,
    choose_weights,
    quant_of,
)

GGUFS = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-Q4_K_S.gguf", "mmproj-F16.gguf"]
GGUF_TWINS = ["a-Q8_0.gguf", "b-Q8_0.gguf"]
SAFETENSORS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def refusal_of(names: list[str], quant: str | None = None) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        choose_weights(names, quant)
    return caught.value


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("llama-3-8b.q4_k_m.gguf", "Q4_K_M"),
        ("m-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m_bf16.gguf", "BF16"),
        ("m-fp16.gguf", "FP16"),
        ("ggml-model.gguf", "ggml-model"),
    ],
)
def test_name_tells_the_quantisation(name: str, quant: str) -> None:
    assert quant_of(name) == quant


def test_asked_for_by_name_a_gguf_goes_first() -> None:
    assert choose_weights([*SAFETENSORS, *GGUFS], "Q4_K_M") == ("m-Q4_K_M.gguf",)
    assert choose_weights(GGUFS, "q4_k_s") == ("m-Q4_K_S.gguf",)


@pytest.mark.parametrize("quant", [None, "int8", "INT8"])
def test_not_asked_for_safetensors_go_first(quant: str | None) -> None:
    assert choose_weights([*GGUFS, *SAFETENSORS, "pytorch_model.bin"], quant) == tuple(SAFETENSORS)
    assert choose_weights(GGUFS, quant) == ("m-Q8_0.gguf",)


def test_method_of_a_quantised_checkpoint_asks_for_what_is_there() -> None:
    assert choose_weights([*SAFETENSORS, *GGUFS], "fp8") == tuple(SAFETENSORS)
    assert refusal_of(GGUFS, "fp8").code == "quant_not_found"


def test_copies_under_other_names_are_left_out() -> None:
    names = [*SAFETENSORS, "consolidated.safetensors", "onnx/model.safetensors"]
    assert choose_weights(names, None) == tuple(SAFETENSORS)


def test_what_transformers_would_not_read_is_not_fetched() -> None:
    refusal = refusal_of(["config.json", "consolidated.safetensors"])
    assert refusal.code == "unsupported_option"


def test_parts_come_together() -> None:
    parts = [f"BF16/m-BF16-{n:05d}-of-00003.gguf" for n in (1, 2, 3)]
    assert choose_weights([*parts, *GGUFS], "bf16") == tuple(parts)


def test_what_is_not_there_is_refused_with_what_is() -> None:
    refusal = refusal_of(GGUFS, "Q5_K_M")
    assert refusal.code == "quant_not_found"
    assert refusal.hint == "there is Q4_K_M, Q4_K_S, Q8_0, int8"
    assert refusal_of(SAFETENSORS, "int4").hint == "there is int8"


def test_two_models_of_one_quantisation_want_a_name() -> None:
    refusal = refusal_of(GGUF_TWINS)
    assert refusal.code == "quant_not_found"
    assert refusal.hint == "name one as quant: a-Q8_0.gguf, b-Q8_0.gguf"
    for name in GGUF_TWINS:
        assert choose_weights(GGUF_TWINS, name) == (name,)


def test_a_file_that_tells_no_quantisation_is_asked_for_by_what_the_hint_says() -> None:
    names = ["ggml-Model.gguf", "m-Q8_0.gguf"]
    assert "ggml-Model" in str(refusal_of(names, "Q2_K").hint)
    assert choose_weights(names, "ggml-Model") == ("ggml-Model.gguf",)


def test_no_weights_and_pickles_are_told_apart() -> None:
    assert refusal_of(["config.json", "mmproj-F16.gguf"]).code == "empty_repo"
    assert refusal_of(["config.json", "pytorch_model.bin"]).code == "unsupported_option"


def test_small_files_go_along() -> None:
    names = ["config.json", "chat_template.jinja", "merges.txt", "a/config.json", "logo.png"]
    assert choose_side_files(names) == ("config.json", "chat_template.jinja", "merges.txt")


@given(st.lists(st.sampled_from((*PREFERRED_QUANTS, "Q2_K", "IQ1_S")), min_size=1, unique=True))
def test_some_file_is_always_chosen_and_it_can_be_asked_for(quants: list[str]) -> None:
    names = [f"m-{quant}.gguf" for quant in quants]
    (chosen,) = choose_weights(names, None)
    assert chosen in names
    assert choose_weights(names, quant_of(chosen)) == (chosen,)
