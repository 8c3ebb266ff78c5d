"""What a header's numbers mean to transformers; what is not understood is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig

from neuron_agent.engine.loading.gguf_config import config_of, model_names
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.sources.gguf_file import GgufFile, GgufTensor

SHAPE = {
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "context_length": 512,
    "attention.head_count": 4,
}


def file(architecture: str = "llama", tensors: tuple[str, ...] = (), **facts: Any) -> GgufFile:
    known = SHAPE | {key.replace("__", "."): value for key, value in facts.items()}
    names = ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", *tensors)
    return GgufFile(
        {"general.architecture": architecture}
        | {f"{architecture}.{key}": value for key, value in known.items()},
        {name: GgufTensor(name, (100, 64), 0, Path("m"), 0, 0) for name in names},
    )


def refusal_of(described: GgufFile) -> LoadRefused:
    with pytest.raises(LoadRefused) as caught:
        config_of(described)
    assert caught.value.code == ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert "llama" in str(caught.value.hint), "it says what would work"
    return caught.value


def test_what_a_file_does_not_say_follows_from_the_rest() -> None:
    config = config_of(file())
    assert isinstance(config, LlamaConfig)
    assert (config.head_dim, config.num_key_value_heads, config.vocab_size) == (16, 4, 100)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.tie_word_embeddings
    assert not config_of(file(tensors=("output.weight",))).tie_word_embeddings


def test_heads_may_be_of_another_size_than_the_rest_suggests() -> None:
    assert config_of(file("qwen3", attention__key_length=32)).head_dim == 32


def test_a_window_makes_a_mistral() -> None:
    config = config_of(file(attention__sliding_window=8))
    assert isinstance(config, MistralConfig)
    assert config.sliding_window == 8


def test_stretched_positions() -> None:
    scaling = {"rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 128}
    linear = config_of(file(rope__scaling__type="linear", **scaling)).rope_parameters
    assert (linear["rope_type"], linear["factor"]) == ("linear", 4.0)
    yarn = config_of(file("qwen2", rope__scaling__type="yarn", **scaling)).rope_parameters
    assert (yarn["rope_type"], yarn["factor"]) == ("yarn", 4.0)
    assert yarn["original_max_position_embeddings"] == 128
    assert "longrope" in refusal_of(file(rope__scaling__type="longrope", **scaling)).message


@pytest.mark.parametrize("facts", [{"rope__scaling__factor": 4.0}, {"rope__scale_linear": 4.0}])
def test_positions_are_stretched_evenly_where_an_older_file_names_no_kind(
    facts: dict[str, float],
) -> None:
    rotary = config_of(file(**facts)).rope_parameters
    assert (rotary["rope_type"], rotary["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize(
    "described",
    [
        file("gemma3"),
        file(rope__scaling__type="yarn", rope__scaling__yarn_beta_fast=16.0),
        file(expert_count=8),
        file(rope__dimension_count=8),
        file(attention__value_length=8),
    ],
)
def test_what_is_not_understood_is_refused(described: GgufFile) -> None:
    refusal_of(described)


def test_every_tensor_has_its_place() -> None:
    names = ["token_embd.weight", "blk.11.attn_k_norm.weight", "blk.0.attn_q.bias", "output.weight"]
    assert list(model_names(names).values()) == [
        "model.embed_tokens.weight",
        "model.layers.11.self_attn.k_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "lm_head.weight",
    ]
    assert model_names(["rope_freqs.weight"]) == {}
    with pytest.raises(LoadRefused):
        model_names(["blk.0.attn_q_a.weight"])
