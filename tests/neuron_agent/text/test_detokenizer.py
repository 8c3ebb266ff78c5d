"""Laws of streamed decoding: the pieces are whole characters and together they are everything."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from neuron_agent.text.detokenizer import MAX_PENDING_TOKENS, Detokenizer
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


TOKENIZER: Tokenizer = build_tokenizer()
FALLBACK: Tokenizer = build_fallback_tokenizer()
EMOJI = "👩‍👩‍👧‍👦 🏳️‍🌈 Grüße 漢字 \u0301"
TEXTS = st.one_of(st.text(), st.text(alphabet=EMOJI + "\ufffd <|im_end|>"))


def decode(token_ids: list[int]) -> str:
    return str(TOKENIZER.decode(token_ids, skip_special_tokens=False))


def pieces(token_ids: list[int], sizes: list[int]) -> list[str]:
    """Feed the ids in runs of the given sizes; the last piece is what finish() gives."""
    detokenizer = Detokenizer(TOKENIZER)
    found, start = [], 0
    for size in [*sizes, len(token_ids)]:
        found.append(detokenizer.feed(token_ids[start : start + size]))
        start += size
    return [*found, detokenizer.finish()]


@given(TEXTS, st.lists(st.integers(0, 5), max_size=20))
def test_pieces_of_a_text_joined_are_the_text(text: str, sizes: list[int]) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "".join(pieces(token_ids, sizes)) == decode(token_ids) == text


@given(TEXTS.filter(lambda text: "\ufffd" not in text))
def test_no_piece_holds_half_a_character(text: str) -> None:
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert not any("\ufffd" in piece for piece in pieces(token_ids, [1] * len(token_ids)))


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=60))
def test_any_ids_give_text_and_leave_nothing_behind(token_ids: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    text = detokenizer.feed(token_ids) + detokenizer.finish()
    assert bool(text) == bool(token_ids)
    assert text.encode().decode() == text
    assert detokenizer.finish() == ""


@given(st.text(alphabet="ab 🙂ü漢e\u0301\n"))
def test_byte_fallback_pieces_joined_are_the_text(text: str) -> None:
    token_ids = FALLBACK.encode(text, add_special_tokens=False).ids
    detokenizer = Detokenizer(FALLBACK)
    joined = "".join(detokenizer.feed([token_id]) for token_id in token_ids) + detokenizer.finish()
    assert joined == FALLBACK.decode(token_ids, skip_special_tokens=False)


@given(st.lists(st.integers(0, FALLBACK.get_vocab_size() - 1), max_size=60))
def test_any_byte_fallback_ids_give_text(token_ids: list[int]) -> None:
    detokenizer = Detokenizer(FALLBACK)
    text = detokenizer.feed(token_ids) + detokenizer.finish()
    assert text.encode().decode() == text
    assert detokenizer.finish() == ""


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=MAX_PENDING_TOKENS - 1))
def test_short_garbage_decodes_as_a_whole(token_ids: list[int]) -> None:
    assert "".join(pieces(token_ids, [])) == decode(token_ids)


def test_bytes_that_never_become_text_do_not_stall_the_stream() -> None:
    first_byte = TOKENIZER.encode("ü", add_special_tokens=False).ids[0]
    text = Detokenizer(TOKENIZER).feed([first_byte] * (MAX_PENDING_TOKENS + 3))
    assert text == "\ufffd" * MAX_PENDING_TOKENS


def test_unfinished_character_is_shown_as_broken_at_the_end() -> None:
    token_ids = TOKENIZER.encode("ab🙂", add_special_tokens=False).ids[:-1]
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.feed(token_ids) == "ab"
    assert detokenizer.finish() == "\ufffd"


def test_markup_tokens_are_shown() -> None:
    token_ids = TOKENIZER.encode("<think>a</think><tool_call>", add_special_tokens=False).ids
    assert Detokenizer(TOKENIZER).feed(token_ids) == "<think>a</think><tool_call>"
