"""GGUF files of tiny models, written with llama.cpp's own package, as its converter would."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import Tokenizer
from transformers import PreTrainedModel

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q5_0": 8}


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    kind: str = "F32",
    *,
    tokenizer: Tokenizer | None = None,
    template: str | None = None,
    end_id: int | None = None,
    tensors_per_file: int = 0,
    facts: dict[str, Any] | None = None,
    extra_tensors: dict[str, torch.Tensor] | None = None,
    leave_out: str = "",
) -> Path:
    """Write a model; return its (first) file. `facts` are keys of the architecture."""
    config: Any = model.config
    writer = GGUFWriter(path, ARCHITECTURES[config.model_type], split_max_tensors=tensors_per_file)
    for key, value in (_shape(config) | (facts or {})).items():
        writer.add_key_value(f"{writer.arch}.{key}", value, gguf.GGUFValueType.get_type(value))
    writer.add_file_type(FILE_TYPES[kind])
    if tokenizer is not None:
        write_tokenizer(writer, tokenizer)
    if template is not None:
        writer.add_chat_template(template)
    if end_id is not None:
        writer.add_eos_token_id(end_id)
    _write_tensors(writer, model, GGMLQuantizationType[kind], leave_out)
    for name, tensor in (extra_tensors or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))
    return parts[0] if parts else path


def write_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    """Write a byte-level tokenizer, its last two hundred rows unused, as a converter pads it."""
    content = json.loads(tokenizer.to_str())
    tokens = {token_id: token for token, token_id in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, TokenType.NORMAL)
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    for token_id in range(len(tokens), len(tokens) + 200):
        tokens[token_id], kinds[token_id] = f"[PAD{token_id}]", TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([tokens[token_id] for token_id in sorted(tokens)])
    writer.add_token_types([kinds[token_id] for token_id in sorted(tokens)])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])


def _shape(config: Any) -> dict[str, Any]:
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.hidden_size // config.num_attention_heads,
        "attention.value_length": config.hidden_size // config.num_attention_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        **_window(config),
    }


def _window(config: Any) -> dict[str, Any]:
    is_mistral = config.model_type == "mistral"
    return {"attention.sliding_window": config.sliding_window} if is_mistral else {}


def _write_tensors(
    writer: GGUFWriter, model: PreTrainedModel, kind: GGMLQuantizationType, leave_out: str
) -> None:
    config: Any = model.config
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[writer.arch]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for model_name, parameter in model.named_parameters():
        values = parameter.detach().float()
        if writer.arch == "llama" and ".q_proj." in model_name:
            values = _as_neighbours(values, config.num_attention_heads)
        if writer.arch == "llama" and ".k_proj." in model_name:
            values = _as_neighbours(values, config.num_key_value_heads)
        name = names.get_name(model_name, try_suffixes=(".weight", ".bias"))
        if name == leave_out:
            continue
        stored = kind if values.ndim == 2 else GGMLQuantizationType.F32
        array = np.ascontiguousarray(values.numpy())
        writer.add_tensor(name, gguf.quants.quantize(array, stored), raw_dtype=stored)


def _as_neighbours(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Put rows that are rotated together beside each other, as llama.cpp has them."""
    return rows.view(num_heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
