"""Random models of a few thousand parameters, saved as ordinary Hugging Face folders.

They say nothing sensible, but always the same, which is what an engine's tests compare.
"""

from pathlib import Path

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY_SIZE = 211
CONTEXT_TOKENS = 512
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": CONTEXT_TOKENS,
    # Wide enough that the best token leads by more than rounding.
    "initializer_range": 0.3,
}
WINDOW = {"sliding_window": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
KINDS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, object]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, WINDOW),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, WINDOW),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM, {"layer_types": ["conv", "full_attention"]}),
    "mamba": (MambaConfig, MambaForCausalLM, {"state_size": 8}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),  # with biases
    "llama_tied": (
        LlamaConfig,
        LlamaForCausalLM,
        {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE, "attention_bias": True},
    ),
    "qwen3_yarn": (Qwen3Config, Qwen3ForCausalLM, {"rope_parameters": YARN_ROPE}),
    "qwen3_mixed": (Qwen3Config, Qwen3ForCausalLM, WINDOW | MIXED | {"use_sliding_window": True}),
    "gemma3_mixed": (Gemma3TextConfig, Gemma3ForCausalLM, WINDOW | MIXED),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, WINDOW),  # caps its scores
}


def build_tiny(kind: str, vocabulary_size: int = VOCABULARY_SIZE) -> PreTrainedModel:
    config_class, model_class, changes = KINDS[kind]
    torch.manual_seed(7)
    shape = SHAPE | {"vocab_size": vocabulary_size}
    return model_class(config_class(**shape, **changes)).eval()


def save_tiny(folder: Path, kind: str = "qwen3") -> Path:
    build_tiny(kind).save_pretrained(folder)
    return folder
