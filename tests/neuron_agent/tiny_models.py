"""Random models of a few thousand parameters, saved as ordinary Hugging Face folders.

They say nothing sensible, but always the same, which is what an engine's tests compare.
"""

from pathlib import Path

import torch
from transformers import (
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
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY_SIZE = 211
CONTEXT_TOKENS = 512
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": CONTEXT_TOKENS,
    # Wide enough that the best token leads by more than rounding.
    "initializer_range": 0.3,
}
WINDOW = {"sliding_window": 8}
KINDS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel], dict[str, object]]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, WINDOW),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, WINDOW),
    "lfm2": (Lfm2Config, Lfm2ForCausalLM, {"layer_types": ["conv", "full_attention"]}),
    "mamba": (MambaConfig, MambaForCausalLM, {"state_size": 8}),
}


def build_tiny(kind: str) -> PreTrainedModel:
    config_class, model_class, changes = KINDS[kind]
    torch.manual_seed(7)
    return model_class(config_class(**SHAPE, **changes)).eval()


def save_tiny(folder: Path, kind: str = "qwen3") -> Path:
    build_tiny(kind).save_pretrained(folder)
    return folder
