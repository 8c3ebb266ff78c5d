"""What a model's output consists of once its markup is read: a closed union of frozen pieces.

It knows neither how a family of models writes these things nor how a wire format shows them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the reader, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the model's reasoning, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """A tool call begins; `index` counts the calls of one output from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, never empty; the texts of a complete call are a JSON object."""

    index: int
    text: str


Piece = Said | Thought | CallStarted | CallArguments


class Pieces:
    """Collects pieces, neighbours of one kind as one; `drain()` hands them over."""

    def __init__(self) -> None:
        self._found: list[Piece] = []
        self._texts: list[str] = []  # of the piece that is still growing
        self._kind: type[Piece] | None = None
        self._num_calls = 0

    def say(self, text: str) -> None:
        self._grow(Said, text)

    def think(self, text: str) -> None:
        self._grow(Thought, text)

    def start_call(self, name: str) -> None:
        self._complete()
        self._found.append(CallStarted(self._num_calls, name))
        self._num_calls += 1

    def add_arguments(self, text: str) -> None:
        """Add to the arguments of the call that was started last."""
        self._grow(CallArguments, text)

    def drain(self) -> list[Piece]:
        """Return what was collected since the last time."""
        self._complete()
        found, self._found = self._found, []
        return found

    def _grow(self, kind: type[Piece], text: str) -> None:
        if kind is not self._kind:
            self._complete()
            self._kind = kind
        if text:
            self._texts.append(text)

    def _complete(self) -> None:
        text = "".join(self._texts)
        self._texts.clear()
        if text and self._kind is CallArguments:
            self._found.append(CallArguments(self._num_calls - 1, text))
        elif text:
            self._found.append(Thought(text) if self._kind is Thought else Said(text))
