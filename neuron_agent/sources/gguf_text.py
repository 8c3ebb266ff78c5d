"""The text side of a GGUF file: tokenizer, chat template, special and stop tokens, sampling.

A GGUF holds no tokenizer.json but what one is made of, under llama.cpp's names: tokens in the order
of their ids, their kinds, merges or scores, and the name of the rule that cuts text into words.
It reads a header's values and neither files nor weights, and imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as cutters
from tokenizers.processors import TemplateProcessing

from neuron_agent.sources.gguf_file import BadGguf

PREFIX = "tokenizer.ggml."
SPECIAL_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",  # llama.cpp spells it so
    "cls_token": "cls_token_id",
}
STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_NAMES = frozenset(
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<end_of_turn>",
    ]
)
"""Control tokens that end a text wherever they are one: many files name but one of theirs."""

WHOLE_WORDS_FIRST = frozenset(
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "lfm2", "tekken"]
)
"""Rules whose vocabularies take a word that is a token as it is, whatever the merges say."""
BEGUN = frozenset(["llama3", "llama-v3", "llama-bpe", "pixtral", "tekken"])
"""Rules whose texts begin with the beginning's token in a file that does not say."""
DIGITS_APART = frozenset(["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"])
"""GPT-2's rule after each digit was made a word of its own."""
AS_GPT2 = frozenset(["", "default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"])
COMPOSED = frozenset(["qwen2", "megrez"])
"""Rules whose texts are brought into Unicode's composed form (NFC) before they are cut."""

SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


class TokenKind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class GgufText:
    tokenizer: Tokenizer
    special_tokens: dict[str, str]
    template: str | None
    stop_ids: tuple[int, ...]
    generation: dict[str, Any]
    """Sampling defaults, by the names of a generation_config.json."""


def read_gguf_text(metadata: Mapping[str, Any], tokenizer: Tokenizer | None = None) -> GgufText:
    """Return what a header says about text. Raises BadGguf if no tokenizer can be made of it.

    A `tokenizer` that is there already takes the place of the header's, which is not looked at.
    """
    tokens = metadata.get(f"{PREFIX}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise BadGguf("the file holds no vocabulary")
    try:
        return GgufText(
            tokenizer=tokenizer or _build_tokenizer(metadata, tokens),
            special_tokens=_special_tokens(metadata, tokens),
            template=_template(metadata),
            stop_ids=_stop_ids(metadata, tokens),
            generation={n: metadata[key] for n, key in SAMPLING_KEYS.items() if key in metadata},
        )
    except BadGguf:
        raise
    except Exception as error:  # the library raises bare Exception for whatever does not agree
        raise BadGguf(f"the file's tokenizer does not work: {error}") from error


def _build_tokenizer(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    kinds = _kinds(metadata)
    model = metadata.get(f"{PREFIX}model")
    if model == "gpt2":
        tokenizer = _byte_level(metadata, tokens, kinds)
    elif model == "llama":
        tokenizer = _sentence_pieces(metadata, tokens)
    else:
        raise BadGguf(f"the file's tokenizer is of the kind {model!r}, which is not supported")
    _add_whole_tokens(tokenizer, tokens, kinds)
    _add_frame(tokenizer, metadata, tokens)
    return tokenizer


# --- the two kinds -------------------------------------------------------------------------------


def _byte_level(
    metadata: Mapping[str, Any], tokens: list[str], kinds: dict[int, TokenKind]
) -> Tokenizer:
    """Byte-level BPE. Rows that only fill up the embedding are no tokens."""
    rule = metadata.get(f"{PREFIX}pre", "")
    vocabulary = {
        token: token_id
        for token_id, token in enumerate(tokens)
        if kinds.get(token_id) is not TokenKind.UNUSED
    }
    bpe = models.BPE(
        vocab=vocabulary,
        merges=_merges(metadata),
        ignore_merges=rule in WHOLE_WORDS_FIRST,
    )
    tokenizer = Tokenizer(bpe)
    if rule in COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _cutter(rule)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _cutter(rule: str) -> Any:
    """Return what cuts text into words by the rule of a name. Raises BadGguf for an unknown one."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    by_gpt2 = cutters.ByteLevel(add_prefix_space=False)
    if rule in AS_GPT2:
        return by_gpt2
    if rule in DIGITS_APART:
        return cutters.Sequence([cutters.Digits(individual_digits=True), by_gpt2])
    pattern = GGUF_PRE_TOKENIZER_SPLITS.get(rule)
    if pattern is None:
        raise BadGguf(
            f"the file cuts text by the rule {rule!r}, which is not known here: "
            "put the model's tokenizer.json beside it"
        )
    cut = cutters.Split(Regex(pattern), behavior="isolated")
    return cutters.Sequence([cut, cutters.ByteLevel(add_prefix_space=False, use_regex=False)])


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for merge in metadata.get(f"{PREFIX}merges", []):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise BadGguf("the file's merges are damaged")
        merges.append((left, right))
    return merges


def _sentence_pieces(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """SentencePiece's BPE: what merges first follows from the scores; unknown text is bytes."""
    from transformers.tokenization_utils_base import generate_merges

    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = _merges(metadata)
    if not merges:
        scores = metadata.get(f"{PREFIX}scores")
        if not isinstance(scores, list) or len(scores) != len(tokens):
            raise BadGguf("the file's scores do not match its tokens")
        merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    unknown = _special(metadata, tokens, "unknown_token_id")
    bpe = models.BPE(
        vocab=vocabulary,
        merges=merges,
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    begins_with_space = bool(metadata.get(f"{PREFIX}add_space_prefix", True))
    # Before a text that begins with a space as well: so it was in Llama 2, and is in llama.cpp.
    before = [normalizers.Prepend("▁")] if begins_with_space else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if begins_with_space:
        steps.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


# --- what both have ------------------------------------------------------------------------------


def _kinds(metadata: Mapping[str, Any]) -> dict[int, TokenKind]:
    """Return the kinds of the tokens that are not ordinary, by id."""
    kinds = metadata.get(f"{PREFIX}token_type") or []
    known = {kind.value: kind for kind in TokenKind if kind is not TokenKind.NORMAL}
    return {token_id: known[kind] for token_id, kind in enumerate(kinds) if kind in known}


def _add_whole_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: dict[int, TokenKind]) -> None:
    """Keep control tokens and such as <think> whole in a text: no merge leads to them."""
    kept = (TokenKind.CONTROL, TokenKind.USER_DEFINED)
    whole = [
        AddedToken(tokens[token_id], normalized=False, special=kind is TokenKind.CONTROL)
        for token_id, kind in sorted(kinds.items())
        if kind in kept and token_id < len(tokens) and tokens[token_id]
    ]
    tokenizer.add_tokens(whole)


def _add_frame(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Let encoding with special tokens put the beginning and the end that the file asks for."""
    # A file that does not say means what llama.cpp takes it to mean.
    is_sentence_pieces = metadata.get(f"{PREFIX}model") == "llama"
    is_begun = is_sentence_pieces or metadata.get(f"{PREFIX}pre") in BEGUN
    first = _special(metadata, tokens, "bos_token_id")
    last = _special(metadata, tokens, "eos_token_id")
    frame = ["$A"]
    used: dict[str, int] = {}
    if first and metadata.get(f"{PREFIX}add_bos_token", is_begun):
        frame, used = [first[0], *frame], used | dict([first])
    if last and metadata.get(f"{PREFIX}add_eos_token", False):
        frame, used = [*frame, last[0]], used | dict([last])
    if used:
        tokenizer.post_processor = TemplateProcessing(
            single=" ".join(frame), special_tokens=list(used.items())
        )


def _special(metadata: Mapping[str, Any], tokens: list[str], key: str) -> tuple[str, int] | None:
    token_id = metadata.get(f"{PREFIX}{key}")
    if not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
        return None
    return tokens[token_id], token_id


def _special_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    found = {name: _special(metadata, tokens, key) for name, key in SPECIAL_KEYS.items()}
    return {name: special[0] for name, special in found.items() if special}


def _template(metadata: Mapping[str, Any]) -> str | None:
    """Return the chat template; of several, the one for tools can do what the other can."""
    for key in ("tokenizer.chat_template.tool_use", "tokenizer.chat_template"):
        template = metadata.get(key)
        if isinstance(template, str) and template:
            return template
    return None


def _stop_ids(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[int, ...]:
    named = [_special(metadata, tokens, key) for key in STOP_KEYS]
    found = {special[1] for special in named if special}
    control = (i for i, kind in _kinds(metadata).items() if kind is TokenKind.CONTROL)
    found.update(i for i in control if i < len(tokens) and tokens[i] in END_NAMES)
    return tuple(sorted(found))
