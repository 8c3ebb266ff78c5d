"""The bytes each token of a tokenizer stands for, and how runs of them become text.

Two kinds of tokenizers write bytes as tokens. Byte-level ones spell every byte as a character of
its own; those with byte fallback have whole texts, and `<0xE2>` for what they have no token for.
Only their decoders' own descriptions tell them apart. It knows neither streams nor requests.
"""

import json
import re
from collections.abc import Iterator
from enum import StrEnum

from tokenizers import Tokenizer

SPACE_MARK = "▁"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenKind(StrEnum):
    BYTE_LEVEL = "byte_level"
    BYTE_FALLBACK = "byte_fallback"
    OTHER = "other"  # tokens are decoded by the library, which alone knows how


class TokenBytes:
    """What a tokenizer's tokens stand for. Ids it does not know stand for nothing."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        steps = _decoder_steps(tokenizer)
        self.kind = _kind_of(steps)
        self.strips_first_space = steps[-1:] == ["Strip"]
        self._known: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """Return the bytes of a token as it stands within a text."""
        found = self._known.get(token_id)
        if found is None:
            found = self._known[token_id] = self._spell(token_id)
        return found

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is a byte that a text fell back to; one that does not exist changes
        nothing about the bytes around it, and counts as one of them."""
        token = self._tokenizer.id_to_token(token_id)
        return token is None or BYTE_TOKEN.fullmatch(token) is not None

    def _spell(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        match self.kind:
            case TokenKind.BYTE_LEVEL:
                return spell_byte_level(token)
            case TokenKind.BYTE_FALLBACK:
                byte = BYTE_TOKEN.fullmatch(token)
                text = token.replace(SPACE_MARK, " ")
                return bytes([int(byte[1], 16)]) if byte else text.encode()
            case TokenKind.OTHER:
                return str(self._tokenizer.decode([token_id], skip_special_tokens=False)).encode()


def _decoder_steps(tokenizer: Tokenizer) -> list[str]:
    """Return the kinds of a decoder's steps, each only if it is set up as is usual."""
    if tokenizer.decoder is None:
        return []
    described = json.loads(tokenizer.decoder.__getstate__())
    steps = described["decoders"] if described["type"] == "Sequence" else [described]
    usual: dict[str, dict[str, object]] = {
        "Replace": {"pattern": {"String": SPACE_MARK}, "content": " "},
        "Strip": {"content": " ", "start": 1, "stop": 0},
    }
    return [
        step["type"] if usual.get(step["type"], {}).items() <= step.items() else "unusual"
        for step in steps
    ]


def _kind_of(steps: list[str]) -> TokenKind:
    if steps == ["ByteLevel"]:
        return TokenKind.BYTE_LEVEL
    if steps in (
        ["Replace", "ByteFallback", "Fuse"],
        ["Replace", "ByteFallback", "Fuse", "Strip"],
    ):
        return TokenKind.BYTE_FALLBACK
    return TokenKind.OTHER


def spell_byte_level(token: str) -> bytes:
    """Return the bytes a byte-level token spells; a token of other characters stands for itself."""
    try:
        return bytes(_BYTES_BY_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_level_alphabet() -> Iterator[tuple[str, int]]:
    """Yield the character that stands for each byte (the alphabet of GPT-2).

    Bytes that are printable in Latin-1 stand for themselves, the others for the characters from
    256 on, in order.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    yield from ((chr(byte), byte) for byte in printable)
    yield from ((chr(256 + number), byte) for number, byte in enumerate(others))


_BYTES_BY_CHARACTER = dict(_byte_level_alphabet())
