"""Token ids to text while they come: never half a character, never decoding the past again.

The texts joined are what the tokenizer makes of all ids at once. It knows one stream of ids and
nothing of requests, stop strings or markup.
"""

import codecs
from collections.abc import Iterable
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from neuron_agent.text.token_bytes import TokenBytes, TokenKind

MAX_PENDING_TOKENS = 16
"""A character takes at most four bytes, hence four tokens; far more without text is garbage."""
MAX_HELD_BYTES = 64
"""Tokenizers with byte fallback show a run of byte tokens as U+FFFD altogether if any of it is
broken, so a run is held back until it ends. A longer one is a script the tokenizer has no tokens
for: its characters then go out one by one, and only a break in such a run is shown otherwise."""


class Detokenizer:
    """Feed ids, get text; the texts joined are the decoding of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = TokenBytes(tokenizer)
        self._stream = self._new_stream()

    def feed(self, token_ids: Iterable[int]) -> str:
        """Return the text that these ids complete; it may be empty."""
        return "".join([self._stream.step(token_id) for token_id in token_ids])

    def finish(self) -> str:
        """Return what is still withheld: broken bytes as U+FFFD. The stream can be used anew."""
        text = self._stream.finish()
        self._stream = self._new_stream()
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for within a text; they may be parts of characters."""
        return self._bytes.of(token_id)

    def _new_stream(self) -> "_Stream":
        match self._bytes.kind:
            case TokenKind.BYTE_LEVEL:
                return _ByteLevelStream(self._bytes)
            case TokenKind.BYTE_FALLBACK:
                return _ByteFallbackStream(self._bytes)
            case TokenKind.OTHER:
                return _LibraryStream(self._tokenizer)


class _Stream(Protocol):
    def step(self, token_id: int) -> str:
        """Return the text that this token completes."""

    def finish(self) -> str:
        """Return what is left. The stream is over."""


class _ByteLevelStream:
    """Every token is bytes, and the text is whatever they are in UTF-8."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def step(self, token_id: int) -> str:
        return self._decoder.decode(self._bytes.of(token_id))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _ByteFallbackStream:
    """Tokens are text, or single bytes where the tokenizer had no token for a character."""

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._held = b""  # of a run of byte tokens
        self._run_length = 0
        self._is_first = token_bytes.strips_first_space

    def step(self, token_id: int) -> str:
        spelled = self._bytes.of(token_id)
        if not self._bytes.is_byte(token_id):
            return self._shown(self._end_run() + spelled.decode())
        self._held += spelled
        self._run_length += 1
        return self._shown(self._whole_characters()) if self._run_length > MAX_HELD_BYTES else ""

    def finish(self) -> str:
        return self._shown(self._end_run())

    def _end_run(self) -> str:
        held, self._held, self._run_length = self._held, b"", 0
        try:
            return held.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(held)

    def _whole_characters(self) -> str:
        """Return what of a long run is text already; broken bytes one by one as U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(self._held)
        self._held = decoder.getstate()[0]
        return text

    def _shown(self, text: str) -> str:
        """Return the text without the one space at the beginning of all."""
        if not text or not self._is_first:
            return text
        self._is_first = False
        return text.removeprefix(" ")


class _LibraryStream:
    """The tokenizers library's DecodeStream, which has no way to end and may wait forever."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._pending: list[int] = []

    def step(self, token_id: int) -> str:
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:  # the library's word for ids whose decoding is not a prefix of the next
            self._pending.append(token_id)
            return self.finish()
        if text is not None:
            self._pending.clear()
            return text
        self._pending.append(token_id)
        return self.finish() if len(self._pending) >= MAX_PENDING_TOKENS else ""

    def finish(self) -> str:
        text = self._tokenizer.decode(self._pending, skip_special_tokens=False)
        self._stream = DecodeStream(skip_special_tokens=False)
        self._pending.clear()
        return str(text)
