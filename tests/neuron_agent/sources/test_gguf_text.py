"""A GGUF's text side is that of the folder it was made of."""

from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.sources.gguf_file import BadGguf, read_gguf
from neuron_agent.sources.gguf_text import GgufText, TokenKind, read_gguf_text
from tests.neuron_agent.sources.gguf_models import write_tokenizer
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer

ORIGINAL = build_tokenizer()
SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The header of a file that llama.cpp's own package wrote."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = GGUFWriter(path, "qwen2")
    write_tokenizer(writer, ORIGINAL)
    writer.add_chat_template(TEMPLATE)
    writer.add_bos_token_id(ORIGINAL.token_to_id("<|im_start|>"))
    writer.add_eos_token_id(ORIGINAL.token_to_id("<|im_end|>"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return read_gguf(path).metadata


@pytest.fixture(scope="module")
def built(metadata: dict[str, Any]) -> GgufText:
    return read_gguf_text(metadata)


@given(st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL))).map("".join))
def test_text_becomes_the_same_tokens_and_back(built: GgufText, text: str) -> None:
    ids = ORIGINAL.encode(text).ids
    assert built.tokenizer.encode(text).ids == ids
    for skip in (True, False):
        expected = ORIGINAL.decode(ids, skip_special_tokens=skip)
        assert built.tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_rows_that_fill_up_the_embedding_are_no_tokens(built: GgufText) -> None:
    assert built.tokenizer.get_vocab() == ORIGINAL.get_vocab()


def test_named_tokens_template_and_ends(built: GgufText) -> None:
    assert built.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert built.template == TEMPLATE
    ends = {ORIGINAL.token_to_id("<|im_end|>"), ORIGINAL.token_to_id("<|endoftext|>")}
    assert set(built.stop_ids) == ends
    assert built.generation == {}


def test_template_for_tools_goes_first(metadata: dict[str, Any]) -> None:
    several = metadata | {"tokenizer.chat_template.tool_use": "tools"}
    assert read_gguf_text(several).template == "tools"


def test_sampling_has_the_names_of_a_generation_config(metadata: dict[str, Any]) -> None:
    wished = metadata | {"general.sampling.temp": 0.5, "general.sampling.penalty_repeat": 1.1}
    generation = read_gguf_text(wished).generation
    assert generation == {"temperature": 0.5, "repetition_penalty": 1.1}


def test_special_tokens_frame_a_text_where_the_file_says_so(metadata: dict[str, Any]) -> None:
    framed = metadata | {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }
    tokenizer = read_gguf_text(framed).tokenizer
    first, last = (ORIGINAL.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    plain = ORIGINAL.encode("one two").ids
    assert tokenizer.encode("one two").ids == [first, *plain, last]
    assert tokenizer.encode("one two", add_special_tokens=False).ids == plain


def test_rule_of_a_family_is_followed(metadata: dict[str, Any]) -> None:
    """Qwen's composes letters and their marks; digits are words of their own."""
    tokenizer = read_gguf_text(metadata | {"tokenizer.ggml.pre": "qwen2"}).tokenizer
    assert tokenizer.encode("e\N{COMBINING ACUTE ACCENT}").ids == ORIGINAL.encode("é").ids
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("12 a")
    assert [piece for piece, _ in pieces] == ["1", "2", "Ġa"]


def test_llama_3_begins_a_text_and_has_its_ends(metadata: dict[str, Any]) -> None:
    """Its files need not say that texts begin with a token, and name one end of three."""
    tokens = [*metadata["tokenizer.ggml.tokens"], "<|end_of_text|>", "<|eom_id|>"]
    kinds = [*metadata["tokenizer.ggml.token_type"], TokenKind.CONTROL, TokenKind.CONTROL]
    text = read_gguf_text(
        metadata
        | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens}
        | {"tokenizer.ggml.token_type": [int(kind) for kind in kinds]}
    )
    assert text.tokenizer.encode("one").tokens[0] == "<|im_start|>"
    assert {len(tokens) - 2, len(tokens) - 1} < set(text.stop_ids)


def test_digits_are_words_of_their_own_where_the_rule_says_so(metadata: dict[str, Any]) -> None:
    tokenizer = read_gguf_text(metadata | {"tokenizer.ggml.pre": "smollm"}).tokenizer
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("a 12")
    assert [piece for piece, _ in pieces] == ["a", "Ġ", "1", "2"]


def test_unknown_rule_is_not_guessed(metadata: dict[str, Any]) -> None:
    with pytest.raises(BadGguf, match=r"'martian'.*tokenizer\.json"):
        read_gguf_text(metadata | {"tokenizer.ggml.pre": "martian"})


PIECES = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab", *(f"<0x{n:02X}>" for n in range(256))]


def sentence_pieces(**changes: object) -> dict[str, Any]:
    named = {TokenKind.UNKNOWN: ["<unk>"], TokenKind.CONTROL: ["<s>", "</s>"]}
    kinds = {token: kind for kind, tokens in named.items() for token in tokens}
    of_bytes = {token: TokenKind.BYTE for token in PIECES if token.startswith("<0x")}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.scores": [-float(place) for place in range(len(PIECES))],
        "tokenizer.ggml.token_type": [
            int((kinds | of_bytes).get(token, TokenKind.NORMAL)) for token in PIECES
        ],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **changes,
    }


def test_sentence_pieces_merge_by_score_and_fall_back_to_bytes() -> None:
    text = read_gguf_text(sentence_pieces())
    tokens = text.tokenizer.encode("ab b</s>ö").tokens
    assert tokens == ["<s>", "▁ab", "▁", "b", "</s>", "▁", "<0xC3>", "<0xB6>"]
    assert text.tokenizer.decode(text.tokenizer.encode("ab bö").ids) == "ab bö"
    assert text.stop_ids == (2,)


def test_sentence_pieces_put_a_space_before_a_space_too() -> None:
    tokenizer = read_gguf_text(sentence_pieces()).tokenizer
    assert tokenizer.encode(" ab", add_special_tokens=False).tokens == ["▁", "▁ab"]
    for text in (" ab", "ab", "  a  b ", ""):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text


def test_sentence_pieces_without_bytes_do_not_swallow_what_they_lack() -> None:
    pieces = PIECES[:8]
    text = read_gguf_text(
        sentence_pieces()
        | {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.scores": [0.0] * len(pieces)}
        | {"tokenizer.ggml.unknown_token_id": 0}
    )
    assert text.tokenizer.encode("a日b").tokens == ["<s>", "▁", "a", "<unk>", "b"]


def test_sentence_pieces_without_a_space_before_them() -> None:
    tokenizer = read_gguf_text(sentence_pieces(**{"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.tokenizer.encode("ab").tokens == ["<s>", "ab"]


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer.ggml.model": "rwkv"},
        {"tokenizer.ggml.tokens": []},
        {"tokenizer.ggml.tokens": 7},
        {"tokenizer.ggml.tokens": [1, 2]},
        {"tokenizer.ggml.scores": [0.0]},
        {"tokenizer.ggml.token_type": 3},
        {"tokenizer.ggml.merges": ["alone"]},
        {"tokenizer.ggml.merges": ["x y"]},
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": [3]},
    ],
)
def test_what_makes_no_tokenizer_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadGguf):
        read_gguf_text(sentence_pieces(**changes))


def test_ids_outside_the_vocabulary_are_left_out(metadata: dict[str, Any]) -> None:
    odd = metadata | {"tokenizer.ggml.eos_token_id": 10**9, "tokenizer.ggml.bos_token_id": "x"}
    assert read_gguf_text(odd).special_tokens == {}
