"""What a GGUF header's numbers mean to transformers: a config, and the names of the weights.

For the architectures in the table, whose tensors map one to one. What a file may say and is not
understood here is refused, never left out: a model that is nearly right talks nonsense.
"""

import re
from collections.abc import Iterable
from typing import Any

from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.sources.gguf_file import GgufFile

ARCHITECTURES: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
ROTARY_DIVISORS = "rope_freqs.weight"
"""Llama 3's scaling: not parameters of a formula but the numbers that came of it."""

SCALING_KEYS = {"type", "factor", "original_context_length", "finetuned"}

_OF_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def config_of(file: GgufFile) -> PreTrainedConfig:
    """Return the config of a GGUF model. Raises LoadRefused for what is not known here.

    Raises KeyError, TypeError, ValueError or ZeroDivisionError for numbers that make no sense.
    """
    kind = ARCHITECTURES.get(file.architecture)
    if kind is None:
        raise _unsupported(f"GGUF files of the architecture {file.architecture!r} are not read")
    if file.of_architecture("expert_count", 0):
        raise _unsupported("GGUF files of mixtures of experts are not read")
    window = file.of_architecture("attention.sliding_window")
    if window and kind is LlamaConfig:
        kind = MistralConfig
    extra: dict[str, Any] = {}
    if kind is MistralConfig:
        extra["sliding_window"] = window
    if kind is LlamaConfig:
        extra["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config: PreTrainedConfig = kind(**_shape(file), **extra)
    return config


def _shape(file: GgufFile) -> dict[str, Any]:
    def number(key: str) -> int:
        value = file.metadata[f"{file.architecture}.{key}"]
        if not isinstance(value, int) or value < 1:
            raise ValueError(key)
        return value

    hidden_size, num_heads = number("embedding_length"), number("attention.head_count")
    head_size = file.of_architecture("attention.key_length", hidden_size // num_heads)
    if file.of_architecture("attention.value_length", head_size) != head_size:
        raise _unsupported("keys and values of different sizes are not read from GGUF files")
    return {
        "hidden_size": hidden_size,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": _num_layers(file, number("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": file.of_architecture("attention.head_count_kv", num_heads),
        "head_dim": head_size,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": float(file.of_architecture("attention.layer_norm_rms_epsilon", 1e-6)),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rotary(file, head_size),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": None,
    }


def _num_layers(file: GgufFile, announced: int) -> int:
    """Return how many layers there are; a file that announces others would take all memory."""
    matches = (_LAYER_NAME.fullmatch(name) for name in file.tensors)
    found = {int(match[1]) for match in matches if match}
    if len(found) != announced or max(found, default=0) + 1 != announced:
        raise ValueError("block_count")
    return announced


def _rotary(file: GgufFile, head_size: int) -> dict[str, Any]:
    if file.of_architecture("rope.dimension_count", head_size) != head_size:
        raise _unsupported("partly rotated heads are not read from GGUF files")
    base = {
        "rope_type": "default",
        "rope_theta": float(file.of_architecture("rope.freq_base", 1e4)),
    }
    _check_scaling_known(file)
    # As llama.cpp has it: linear where no kind is named, and older files have one key for both.
    scaling = file.of_architecture("rope.scaling.type", "linear")
    older = file.of_architecture("rope.scale_linear", 1.0)
    factor = float(file.of_architecture("rope.scaling.factor", older))
    if scaling == "none" or factor == 1.0:
        return base
    if scaling == "linear":
        return base | {"rope_type": "linear", "factor": factor}
    if scaling == "yarn":
        trained = file.of_architecture("rope.scaling.original_context_length")
        known = {} if trained is None else {"original_max_position_embeddings": int(trained)}
        return base | {"rope_type": "yarn", "factor": factor, **known}
    raise _unsupported(f"positions scaled by {scaling!r} are not read from GGUF files")


def _check_scaling_known(file: GgufFile) -> None:
    start = f"{file.architecture}.rope.scaling."
    named = {key.removeprefix(start) for key in file.metadata if key.startswith(start)}
    if unknown := sorted(named - SCALING_KEYS):
        raise _unsupported(f"positions scaled with {unknown[0]!r} are not read from GGUF files")


def model_names(names: Iterable[str]) -> dict[str, str]:
    """Return each tensor's name in the model. Raises LoadRefused for one that has no place."""
    found: dict[str, str] = {}
    for name in names:
        if name != ROTARY_DIVISORS:
            found[name] = _model_name(name)
    return found


def _model_name(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if stem in _OF_MODEL and leaf == "weight":
        return f"{_OF_MODEL[stem]}.weight"
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _OF_LAYER:
        raise _unsupported(f"the GGUF file holds {name}, which its architecture has no place for")
    return f"model.layers.{match[1]}.{_OF_LAYER[match[2]]}.{match[3]}"


def _unsupported(message: str) -> LoadRefused:
    known = ", ".join(ARCHITECTURES)
    return LoadRefused(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        message,
        hint=f"load the model's safetensors repository; GGUF is read for {known}",
    )
