"""A model of random weights with a real tokenizer, as a Hugging Face folder and as a GGUF file.

It says nothing sensible, but costs what a trained model of its shape costs. It knows nothing of
what is measured with it.
"""

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY_SIZE = 8192
CONTEXT_TOKENS = 8192
NUM_SOURCES = 200
SEED = 7
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
_BF16 = gguf.GGMLQuantizationType.BF16


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a Qwen3 model that decide what a token costs. Heads are 64 wide."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


SMALL = Shape(hidden=640, intermediate=1792, layers=12, heads=10, kv_heads=5)
"""66.1 M parameters, 10.5 M of them the two tables: 132 MB in bf16."""
MEDIUM = Shape(hidden=1024, intermediate=3072, layers=20, heads=16, kv_heads=8)
"""268 M parameters: 537 MB in bf16."""


def build_model(folder: Path, shape: Shape = SMALL) -> Path:
    """Write the model in bf16 with its tokenizer, template and generation config."""
    tokenizer = _train_tokenizer()
    end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = Qwen3Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=64,
        vocab_size=VOCABULARY_SIZE,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=end_id, pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def corpus_ids(folder: Path) -> list[int]:
    """Return the token ids of a long text, from which prompts are cut."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return list(tokenizer.encode("\n".join(_sources(20))).ids)


def _train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sources(NUM_SOURCES), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def _sources(num_files: int) -> Iterator[str]:
    """Yield texts everybody has: the standard library's sources, the same on every run."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.glob("*.py"))[:num_files]:
        yield path.read_text(encoding="utf-8", errors="replace")


# --- GGUF ----------------------------------------------------------------------------------------


def write_gguf(folder: Path, path: Path) -> Path:
    """Write the same weights as llama.cpp reads them: matrices in bf16, vectors in fp32."""
    config = Qwen3Config.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "qwen3")
    _add_shape(writer, config)
    _add_tokenizer(writer, folder, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, tensor in load_file(folder / "model.safetensors").items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if tensor.ndim == 2:
            raw = gguf.quants.quantize(tensor.float().numpy(), _BF16)
            writer.add_tensor(gguf_name, raw, raw_dtype=_BF16)
        else:
            writer.add_tensor(gguf_name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter, config: Qwen3Config) -> None:
    writer.add_name("random")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: Qwen3Config) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = range(config.vocab_size)
    tokens = [tokenizer.id_to_token(token_id) or f"[unused {token_id}]" for token_id in ids]
    kinds = [
        gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_merges_of(tokenizer))
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_add_bos_token(False)


def _merges_of(tokenizer: Tokenizer) -> list[str]:
    """Return the merges as pairs divided by a space, as both formats had it first."""
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
