"""Token ids to text while they come: never half a character, never decoding the past again.

It wraps the tokenizers library's DecodeStream, which withholds text until it is whole characters
but has no way to end and waits forever behind bytes that are no UTF-8. It knows one stream of ids
and nothing of requests, stop strings or markup.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

MAX_PENDING_TOKENS = 16
"""A character takes at most four bytes, hence four tokens; far more without text is garbage."""


class Detokenizer:
    """Feed ids, get text; the texts joined are the decoding of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)
        self._pending: list[int] = []

    def feed(self, token_ids: Iterable[int]) -> str:
        """Return the text that these ids complete; it may be empty."""
        return "".join(self._step(token_id) for token_id in token_ids)

    def finish(self) -> str:
        """Return what is still withheld: broken bytes as U+FFFD. The stream can be used anew."""
        text = self._tokenizer.decode(self._pending, skip_special_tokens=False)
        self._restart()
        return text

    def _step(self, token_id: int) -> str:
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

    def _restart(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=False)
        self._pending.clear()
