"""A model folder as small as can be: a byte-level tokenizer, a ChatML template, no real weights."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = """\
{%- if tools %}<|im_start|>system
# Tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is defined %}{{ message.content }}{% endif %}
{%- if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""

PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ("user", "assistant") -%}
{{ raise_exception("only user and assistant") }}
{%- endif -%}
{{ message.role }}: {{ message.content }}
{% endfor %}assistant:"""


def build_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer with a few hundred merges: emoji take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox counts one two three " * 5], trainer)
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in ("<think>", "</think>", "<tool_call>")]
    )
    return tokenizer


def write_model(
    folder: Path, *, template: str | None = TEMPLATE, fake: dict[str, Any] | None = None
) -> Path:
    """Write a model folder; `fake` scripts the fake device (see tests/fakes/fake_device.py)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end_id = tokenizer.token_to_id("<|im_end|>")
    config = {"model_type": "qwen3", "eos_token_id": end_id, "fake": fake or {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    (folder / "model.safetensors").write_bytes(b"\0" * 64)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
