"""Laws of streamed decoding: the pieces are whole characters and together they are everything."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from neuron_agent.text.detokenizer import MAX_HELD_BYTES, MAX_PENDING_TOKENS, Detokenizer
from tests.neuron_agent.tiny_model import build_tokenizer


def build_fallback_tokenizer() -> Tokenizer:
    """Return a tokenizer of the other kind: marks for spaces, bytes for unknown characters."""
    letters = ["<unk>", "▁", *"abcdefghijklmnop", "▁a", "ü", "漢"]
    pieces = [*letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)])
    return tokenizer


def build_mark_tokenizer() -> Tokenizer:
    """Return a tokenizer that marks spaces and has no bytes: what it does not know is lost."""
    letters = ["<unk>", "▁", *"abcdefgh", "▁a", "▁▁", "a▁b", "\ufffd", "🙂", "ü"]
    vocabulary = {piece: number for number, piece in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def build_word_tokenizer() -> Tokenizer:
    pieces = ["[UNK]", "a", "##b", "##c", "d", ".", "'", "##.", "do", "ü"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def build_gemma_tokenizer() -> Tokenizer:
    """Return the other kind again, whose decoder strips no space."""
    tokenizer = build_fallback_tokenizer()
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(spaces)
    return tokenizer


TOKENIZER: Tokenizer = build_tokenizer()
FALLBACK: Tokenizer = build_fallback_tokenizer()
KINDS = {
    "byte-level": TOKENIZER,
    "byte fallback": FALLBACK,
    "byte fallback, spaces kept": build_gemma_tokenizer(),
    "marked spaces": build_mark_tokenizer(),
    "word pieces": build_word_tokenizer(),
}
EMOJI = "👩‍👩‍👧‍👦 🏳️‍🌈 Grüße 漢字 \u0301"
TEXTS = st.one_of(st.text(), st.text(alphabet=EMOJI + "\ufffd <|im_end|>"))


def decode(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=False))


def pieces(tokenizer: Tokenizer, token_ids: list[int], sizes: list[int]) -> list[str]:
    """Feed the ids in runs of the given sizes; the last piece is what finish() gives."""
    detokenizer = Detokenizer(tokenizer)
    found, start = [], 0
    for size in [*sizes, len(token_ids)]:
        found.append(detokenizer.feed(token_ids[start : start + size]))
        start += size
    return [*found, detokenizer.finish()]


@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_random_streams_decode_to_what_the_whole_is(kind: str) -> None:
    tokenizer, chance = KINDS[kind], random.Random(kind)
    num_ids = tokenizer.get_vocab_size() + 2  # two that do not exist
    for _ in range(2000):
        token_ids = [chance.randrange(num_ids) for _ in range(chance.randint(0, MAX_HELD_BYTES))]
        texts = pieces(tokenizer, token_ids, [1] * len(token_ids))
        assert "".join(texts) == decode(tokenizer, token_ids)
        assert all(text.encode().decode() == text for text in texts)


@given(TEXTS, st.lists(st.integers(0, 5), max_size=20))
def test_pieces_of_a_text_joined_are_the_text(text: str, sizes: list[int]) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    joined = "".join(pieces(TOKENIZER, token_ids, sizes))
    assert joined == decode(TOKENIZER, token_ids) == text


@given(TEXTS.filter(lambda text: "\ufffd" not in text))
def test_no_piece_holds_half_a_character(text: str) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    found = pieces(TOKENIZER, token_ids, [1] * len(token_ids))
    assert not any("\ufffd" in piece for piece in found)


@given(st.data())
def test_where_the_ids_are_cut_does_not_matter(data: st.DataObject) -> None:
    tokenizer = KINDS[data.draw(st.sampled_from(list(KINDS)))]
    token_ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size()), max_size=200))
    sizes = data.draw(st.lists(st.integers(0, 9), max_size=20))
    joined = "".join(pieces(tokenizer, token_ids, sizes))
    assert joined == "".join(pieces(tokenizer, token_ids, [1] * len(token_ids)))


@given(st.text(alphabet="ab 🙂ü漢e\u0301\n", max_size=80))
def test_byte_fallback_pieces_joined_are_the_text(text: str) -> None:
    token_ids = FALLBACK.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(FALLBACK, token_ids, [1] * len(token_ids))) == decode(FALLBACK, token_ids)


def test_a_script_without_tokens_streams_by_character() -> None:
    text = "🙂" * MAX_HELD_BYTES
    token_ids = FALLBACK.encode(text, add_special_tokens=False).ids
    found = [piece for piece in pieces(FALLBACK, token_ids, [1] * len(token_ids)) if piece]
    assert "".join(found) == text
    assert found[1:] == ["🙂"] * (len(found) - 1)
    assert len(found) > MAX_HELD_BYTES // 2


def test_bytes_that_never_become_text_do_not_stall_the_stream() -> None:
    first_byte = TOKENIZER.encode("ü", add_special_tokens=False).ids[0]
    assert Detokenizer(TOKENIZER).feed([first_byte] * 20) == "\ufffd" * 19
    fallen = FALLBACK.token_to_id("<0xC3>")
    assert Detokenizer(FALLBACK).feed([fallen] * (MAX_HELD_BYTES + 3)) == "\ufffd" * 66
    broken = KINDS["marked spaces"].token_to_id("\ufffd")
    marks = Detokenizer(KINDS["marked spaces"])
    assert marks.feed([broken] * MAX_PENDING_TOKENS) == "\ufffd" * MAX_PENDING_TOKENS


def test_unfinished_character_is_shown_as_broken_at_the_end() -> None:
    token_ids = TOKENIZER.encode("ab🙂", add_special_tokens=False).ids[:-1]
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.feed(token_ids) == "ab"
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""


def test_a_finished_stream_begins_anew() -> None:
    detokenizer = Detokenizer(FALLBACK)
    token_ids = FALLBACK.encode("a b", add_special_tokens=False).ids
    for _ in range(2):
        assert detokenizer.feed(token_ids) + detokenizer.finish() == "a b"


def test_markup_tokens_are_shown() -> None:
    token_ids = TOKENIZER.encode("<think>a</think><tool_call>", add_special_tokens=False).ids
    assert Detokenizer(TOKENIZER).feed(token_ids) == "<think>a</think><tool_call>"


@given(TEXTS)
def test_token_bytes_joined_are_the_text(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert b"".join(map(detokenizer.token_bytes, token_ids)) == text.encode()
