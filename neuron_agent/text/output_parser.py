"""A model's output to what it says, thinks and calls, while it comes. Sans-IO.

    reasoning (once, at the beginning) -> text, with calls in it

What it reads as markup is left out; all else comes out as it was written, in order, and as soon as
it can no longer be the beginning of markup. It knows no family's way to write calls and no wire.

Line breaks next to the reasoning's marks belong to the marks. White space directly before a call,
and after one if another call or nothing follows, belongs to the calls. Reasoning opens only as the
first thing of an output: the same mark in the middle of an answer is spoken about, not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuron_agent.text.calls import Family, Tools
from neuron_agent.text.pieces import CallArguments, CallStarted, Piece, Pieces, Said, Thought
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

__all__ = [
    "CallArguments",
    "CallStarted",
    "OutputParser",
    "Piece",
    "ReasoningMarks",
    "Said",
    "Thought",
]

LINE_BREAKS = "\r\n"


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands before and after a model's reasoning."""

    opening: str
    closing: str


class OutputParser:
    """Feed text, get pieces; what is still held back comes with `finish()`.

    Without marks nothing is reasoning; without a family or tools nothing is a call.
    """

    def __init__(
        self,
        *,
        reasoning: ReasoningMarks | None,
        family: Family | None,
        tools: Sequence[Mapping[str, Any]] = (),
        starts_reasoning: bool = False,
    ) -> None:
        self._marks = reasoning
        self._family = family if tools else None
        self._tools = Tools.of(tools)
        self._starts_reasoning = starts_reasoning
        self._is_reasoning = starts_reasoning and reasoning is not None
        self._reader = TextReader()
        self._pieces = Pieces()
        self._reading = self._read()

    @property
    def is_reasoning(self) -> bool:
        """Whether the text that comes next continues the model's reasoning."""
        return self._is_reasoning

    def feed(self, text: str) -> list[Piece]:
        """Return the pieces that this text completes."""
        self._reader.feed(text)
        return self._advance()

    def finish(self) -> list[Piece]:
        """Return what was held back: the output is over."""
        self._reader.end()
        return self._advance()

    def _advance(self) -> list[Piece]:
        next(self._reading, None)
        return self._pieces.drain()

    def _read(self) -> Wait[None]:
        yield from self._read_reasoning()
        if self._family is None:
            yield from self._reader.take_until((), self._pieces.say)
            return
        if self._family.can_begin_bare:
            yield from self._read_bare_call(self._family)
        yield from self._read_answer(self._family)

    def _read_reasoning(self) -> Wait[None]:
        if self._marks is None:
            return
        self._reader.keep()
        yield from self._reader.take_while(WHITESPACE)
        if (yield from self._reader.take_one_of((self._marks.opening,))):
            self._reader.forget()
        else:
            self._reader.give_back()
            if not self._starts_reasoning:
                return
        self._is_reasoning = True
        yield from self._reader.take_while(LINE_BREAKS)
        ends = (self._marks.closing,)
        yield from self._reader.take_until(ends, self._pieces.think, trimmed=LINE_BREAKS)
        self._is_reasoning = False
        yield from self._reader.take_while(LINE_BREAKS)

    def _read_answer(self, family: Family) -> Wait[None]:
        """Say text and read the calls in it. A marker that opens no call is text."""
        reader, pieces = self._reader, self._pieces
        while found := (yield from reader.take_until(family.markers, pieces.say, WHITESPACE)):
            reader.keep()
            if (yield from family.read(found.lstrip(), reader, pieces, self._tools)):
                yield from self._drop_last_space()
            else:
                reader.give_back()
                pieces.say(found)

    def _read_bare_call(self, family: Family) -> Wait[None]:
        self._reader.keep()
        yield from self._reader.take_while(WHITESPACE)
        is_object = (yield from self._reader.peek()) == "{"
        if is_object and (yield from family.read("", self._reader, self._pieces, self._tools)):
            yield from self._drop_last_space()
        else:
            self._reader.give_back()

    def _drop_last_space(self) -> Wait[None]:
        """Take the white space after a call if nothing follows it."""
        self._reader.keep()
        yield from self._reader.take_while(WHITESPACE)
        if (yield from self._reader.peek()):
            self._reader.give_back()
        else:
            self._reader.forget()
