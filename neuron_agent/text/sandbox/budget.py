"""What rendering one template may take: steps, characters, time.

The budget of the rendering in progress is found by context, since templates are compiled once and
rendered by many threads. It knows no templates; what is too much raises TooMuch.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any

from jinja2.exceptions import TemplateError

MAX_STEPS = 2_000_000
"""Some seconds of Python. A conversation of ten thousand turns takes a tenth; where a template
looks ahead from every turn, as gpt-oss' does for the last answer, one of a thousand takes half."""
MAX_CHARACTERS = 64 * 1024 * 1024
"""Of all texts made on the way: a million tokens of prompt, some ten times over."""
MAX_VALUES = 500_000
"""In one list or mapping, everything within counted."""
MAX_DURATION = timedelta(seconds=5)
STEPS_BETWEEN_LOOKS = 1000  # at the clock


class TooMuch(TemplateError):
    """The template takes more than its budget."""


class Budget:
    """What one rendering may still take."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.now = now
        self._ends_at = now() + MAX_DURATION
        self._steps = 0
        self._looks_at = 0
        self._characters = 0

    def take_steps(self, count: int) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            raise TooMuch(f"it takes more than {MAX_STEPS} steps")
        if self._steps >= self._looks_at:
            self._looks_at = self._steps + STEPS_BETWEEN_LOOKS
            if self.now() > self._ends_at:
                raise TooMuch(f"it takes longer than {MAX_DURATION.total_seconds():.0f} s")

    def take_characters(self, count: int) -> None:
        self._characters += count
        if self._characters > MAX_CHARACTERS:
            raise TooMuch(f"it makes more than {MAX_CHARACTERS} characters of text")


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def format_now(pattern: str) -> str:
    """Return the date and time as templates ask for them."""
    budget = _budget.get()
    assert budget is not None
    return budget.now().strftime(pattern)


def take(steps: int = 1, characters: int = 0) -> None:
    """Charge the rendering in progress; constants that are folded before it cost nothing."""
    if characters > MAX_CHARACTERS:
        raise TooMuch(f"it makes a text of {characters} characters")
    budget = _budget.get()
    if budget is not None:
        budget.take_steps(steps)
        budget.take_characters(characters)


@contextmanager
def budgeted(now: Callable[[], datetime]) -> Iterator[None]:
    """Render within this: a new budget, which ends with the block."""
    token = _budget.set(Budget(now))
    try:
        yield
    finally:
        _budget.reset(token)


def size_of(value: Any) -> tuple[int, int]:
    """Return how many values and characters there are in a value. Raises TooMuch.

    Not by recursion, and not past the limit: a few lists that hold each other twice are endless.
    """
    values = characters = 0
    waiting = [value]
    while waiting:
        current = waiting.pop()
        values += 1
        if values > MAX_VALUES:
            raise TooMuch(f"it makes a value of more than {MAX_VALUES} parts")
        if isinstance(current, str):
            characters += len(current)
        elif isinstance(current, Mapping):
            waiting.extend(current.keys())
            waiting.extend(current.values())
        elif isinstance(current, list | tuple | set | frozenset):
            waiting.extend(current)
    return values, characters
