"""What single tokens stand for, told from the tokenizer's own decoder."""

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers

from neuron_agent.text.token_bytes import TokenBytes, TokenKind, spell_byte_level
from tests.neuron_agent.text.test_detokenizer import KINDS, build_fallback_tokenizer


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("byte-level", TokenKind.BYTE_LEVEL),
        ("byte fallback", TokenKind.BYTE_FALLBACK),
        ("byte fallback, spaces kept", TokenKind.BYTE_FALLBACK),
        ("marked spaces", TokenKind.OTHER),
        ("word pieces", TokenKind.OTHER),
    ],
)
def test_the_kind_is_told_from_the_decoder(name: str, kind: TokenKind) -> None:
    assert TokenBytes(KINDS[name]).kind == kind


def test_an_unusual_decoder_is_left_to_the_library() -> None:
    tokenizer: Tokenizer = build_fallback_tokenizer()
    steps = [decoders.Replace("_", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    assert TokenBytes(tokenizer).kind == TokenKind.OTHER
    tokenizer.decoder = None
    assert TokenBytes(tokenizer).kind == TokenKind.OTHER


@pytest.mark.parametrize(
    ("token", "expected"),
    [("▁a", b" a"), ("<0xC3>", b"\xc3"), ("漢", "漢".encode()), ("no such token", b"")],
)
def test_tokens_with_byte_fallback_are_texts_or_bytes(token: str, expected: bytes) -> None:
    tokenizer = KINDS["byte fallback"]
    token_id = tokenizer.token_to_id(token)
    assert TokenBytes(tokenizer).of(9999 if token_id is None else token_id) == expected


def test_other_tokens_are_what_the_library_makes_of_them() -> None:
    tokenizer = KINDS["word pieces"]
    assert TokenBytes(tokenizer).of(tokenizer.token_to_id("do")) == b"do"


def test_every_byte_has_its_character() -> None:
    assert spell_byte_level("Ġaþ") == b" a\xfe"
    assert spell_byte_level("<a b>") == b"<a b>"  # an added token, with a space as it is
    spelled = {spell_byte_level(character) for character in pre_tokenizers.ByteLevel.alphabet()}
    assert spelled == {bytes([byte]) for byte in range(256)}
