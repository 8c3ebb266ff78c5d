"""Text that comes in parts, for parsers written as if it were all there.

A parser is a generator: it takes characters from a TextReader by `yield from` and is suspended
whenever it needs one that has not come. Because it sees single characters and never parts, where
the text was cut cannot matter. It knows no markup.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
"""What a parser returns in the end; on its way it yields while it waits for text."""

WHITESPACE = " \t\r\n"


class TextReader:
    """A cursor in a growing text. The end of the text reads as the empty string."""

    def __init__(self) -> None:
        self._text = ""
        self._position = 0
        self._is_ended = False
        self._kept_from: int | None = None  # text from here on may be asked for again

    def feed(self, text: str) -> None:
        start = self._position if self._kept_from is None else self._kept_from
        self._text = self._text[start:] + text
        self._position -= start
        self._kept_from = None if self._kept_from is None else 0

    def end(self) -> None:
        self._is_ended = True

    # --- keeping and giving back ------------------------------------------------------------

    def keep(self) -> None:
        """Remember this place: all that is read from here on can be given back."""
        self._kept_from = self._position

    def forget(self) -> None:
        """What was read stays read."""
        self._kept_from = None

    def give_back(self) -> None:
        """Return to the place that was remembered."""
        assert self._kept_from is not None
        self._position, self._kept_from = self._kept_from, None

    # --- reading ----------------------------------------------------------------------------

    def peek(self) -> Wait[str]:
        """Return the next character without taking it; the empty string at the end."""
        while self._position == len(self._text):
            if self._is_ended:
                return ""
            yield
        return self._text[self._position]

    def take(self) -> Wait[str]:
        """Return the next character; the empty string at the end."""
        char = yield from self.peek()
        self._position += len(char)
        return char

    def take_while(self, chars: str) -> Wait[str]:
        """Return the longest run of these characters, which may be empty."""
        taken = []
        while (char := (yield from self.peek())) and char in chars:
            taken.append(char)
            self._position += 1
        return "".join(taken)

    def take_exactly(self, text: str) -> Wait[bool]:
        """Whether this text comes next. Where it does not, the part that did is taken."""
        for expected in text:
            if (yield from self.peek()) != expected:
                return False
            self._position += 1
        return True

    def take_one_of(self, texts: Sequence[str]) -> Wait[str]:
        """Return which of these texts comes next, and take it; else take and return nothing."""
        while True:
            rest = self._text[self._position :]
            found = next((text for text in texts if rest.startswith(text)), "")
            if found or self._is_ended or not any(text.startswith(rest) for text in texts):
                self._position += len(found)
                return found
            yield

    def take_until(
        self, markers: Sequence[str], emit: Callable[[str], None], trimmed: str = ""
    ) -> Wait[str]:
        """Emit text until a marker, take and return it; the empty string at the end of the text.

        Of markers that overlap the one that is complete first is taken, of several the longest.
        Characters of `trimmed` that stand directly before a marker belong to it: they are not
        emitted but returned with it. What may yet become a marker is held back, nothing else.
        """
        while True:
            rest = self._text[self._position :]
            places = [(rest.find(marker), len(marker)) for marker in markers]
            found = min(((at + size, at) for at, size in places if at >= 0), default=None)
            if found is not None:
                end, start = found
                start = len(rest[:start].rstrip(trimmed)) if trimmed else start
                emit(rest[:start])
                self._position += end
                return rest[start:end]
            held = 0 if self._is_ended else hold_back(rest, markers, trimmed)
            emit(rest[: len(rest) - held])
            self._position += len(rest) - held
            if self._is_ended:
                return ""
            yield


def hold_back(text: str, markers: Sequence[str], trimmed: str = "") -> int:
    """Return how much of the text's end may belong to a marker that is not all there yet."""
    begun = max((overlap(text, marker) for marker in markers), default=0)
    before = text[: len(text) - begun]
    return len(text) - len(before.rstrip(trimmed) if trimmed else before)


def overlap(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` that is a beginning of `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)
