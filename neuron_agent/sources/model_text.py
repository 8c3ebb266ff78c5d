"""The text side of a model: tokenizer, chat template, stop tokens, sampling defaults.

All the front process needs of a model. It reads small files and headers, never weights, imports no
torch of its own, and knows no requests. Folders without a tokenizer.json take the slow road
through transformers' AutoTokenizer; a GGUF file without one beside it brings its own, and what
else the files beside it leave open.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import ErrorCode
from neuron_agent.sources.gguf_file import BadGguf, read_gguf
from neuron_agent.sources.gguf_text import GgufText, read_gguf_text
from neuron_agent.text.chat_template import ChatTemplate
from neuron_agent.text.output_format import OutputFormat, detect_format

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a request that does not say gets: the model's generation_config.json, else plain 1."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelText:
    tokenizer: Tokenizer
    template: ChatTemplate | None
    stop_ids: tuple[int, ...]
    defaults: SamplingDefaults = SamplingDefaults()
    format: OutputFormat = field(init=False)
    """How its output marks reasoning and tool calls, by its template and its own tokens."""

    def __post_init__(self) -> None:
        source = self.template.source if self.template else None
        added = self.tokenizer.get_added_tokens_decoder()
        ids = {token.content: token_id for token_id, token in added.items()}
        object.__setattr__(self, "format", detect_format(source, ids))

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text; a rendered template brings its special tokens itself.

        As a batch of one: for a single text the library keeps the interpreter to itself, and a
        long one would stop all other streams though it is encoded in a thread of its own.
        """
        (encoded,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoded.ids


def read_model_text(path: Path) -> ModelText:
    """Return the text side of a model, a folder or a GGUF file.

    Raises Unprocessable if it has none that works.
    """
    if path.suffix != ".gguf":
        return _read_folder(path)
    if (path.parent / "tokenizer.json").is_file():
        return _read_beside(path)
    return _read_gguf(path)


def read_tokenizer(path: Path) -> Tokenizer:
    """Return a model's tokenizer alone. Raises Unprocessable."""
    return read_model_text(path).tokenizer


def _read_gguf(path: Path) -> ModelText:
    try:
        text = read_gguf_text(read_gguf(path).metadata)
    except BadGguf as error:
        raise _unreadable(str(error)) from error
    return ModelText(text.tokenizer, _template_of(text), text.stop_ids, _defaults(text.generation))


def _read_beside(path: Path) -> ModelText:
    """Return the text side of the files beside a GGUF, completed by its header."""
    text = _read_folder(path.parent)
    try:
        header = read_gguf_text(read_gguf(path).metadata, text.tokenizer)
    except BadGguf:
        return text  # the load will say what is wrong with the file
    all_ends = {*text.stop_ids, *header.stop_ids}
    is_settled = (path.parent / "generation_config.json").is_file()
    return ModelText(
        tokenizer=text.tokenizer,
        template=text.template or _template_of(header),
        stop_ids=text.stop_ids if is_settled else tuple(sorted(all_ends)),
        defaults=text.defaults if is_settled else _defaults(header.generation),
    )


def _template_of(text: GgufText) -> ChatTemplate | None:
    return ChatTemplate(text.template, text.special_tokens) if text.template else None


def _read_folder(folder: Path) -> ModelText:
    settings = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        tokenizer = _read_tokenizer(folder / "tokenizer.json")
        special_tokens = _special_tokens(settings)
        source = _template_source(folder, settings)
    else:
        tokenizer, special_tokens, source = _read_with_transformers(folder)
    return ModelText(
        tokenizer=tokenizer,
        template=ChatTemplate(source, special_tokens) if source else None,
        stop_ids=_stop_ids(folder, tokenizer, special_tokens),
        defaults=_defaults(_read_json(folder / "generation_config.json")),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(f"{path.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise _unreadable(f"{path.name} is not a JSON object")
    return content


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise _unreadable(f"tokenizer.json cannot be used: {error}") from error


def _read_with_transformers(folder: Path) -> tuple[Tokenizer, dict[str, str], str | None]:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # any of a dozen kinds, by tokenizer family
        raise _unreadable("the folder has no tokenizer that transformers can read") from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise _unreadable("the model's tokenizer has no fast form")
    template = loaded.chat_template
    source = template if isinstance(template, str) else None
    return loaded.backend_tokenizer, dict(loaded.special_tokens_map), source


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the named special tokens; each is a string or an object with its content."""
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


def _template_source(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the chat template: a file of its own wins over the entry in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise _unreadable(f"{file.name} is not UTF-8") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name: the one for tools can do what the other can
        entries = [entry for entry in template if isinstance(entry, dict)]
        by_name = {str(entry.get("name")): entry.get("template") for entry in entries}
        template = by_name.get("tool_use") or by_name.get("default")
    return template if isinstance(template, str) else None


def _stop_ids(
    folder: Path, tokenizer: Tokenizer, special_tokens: Mapping[str, str]
) -> tuple[int, ...]:
    """Return every token that ends a text, by whichever file names it."""
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        value = _read_json(folder / name).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        found.update(token_id for token_id in ids if isinstance(token_id, int))
    if "eos_token" in special_tokens:
        token_id = tokenizer.token_to_id(special_tokens["eos_token"])
        found.update([] if token_id is None else [token_id])
    return tuple(sorted(found))


def _defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    """Return the model's own sampling; `do_sample: false` is transformers' word for greedy."""
    if generation.get("do_sample") is False:
        return SamplingDefaults(temperature=0.0)
    plain = SamplingDefaults()
    return SamplingDefaults(
        temperature=_number(generation.get("temperature"), plain.temperature),
        top_p=_number(generation.get("top_p"), plain.top_p),
        top_k=max(0, int(_number(generation.get("top_k"), plain.top_k))),  # -1 says "off" too
        min_p=_number(generation.get("min_p"), plain.min_p),
        repetition_penalty=_number(generation.get("repetition_penalty"), plain.repetition_penalty),
    )


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def _unreadable(message: str) -> Unprocessable:
    return Unprocessable(message, code=ErrorCode.LOAD_FAILED)
