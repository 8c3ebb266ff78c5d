"""JSON that comes in parts, read as raw text: where a value ends, not whether it is right.

What a model writes is handed on as it wrote it; so numbers and words are not checked, only
strings, brackets and the few characters that no JSON has outside strings.
"""

import json
from collections.abc import Callable
from typing import Any

from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

OPENING, CLOSING = "{[", "}]"
ENDS_SCALAR = ",:" + OPENING + CLOSING + '"<' + WHITESPACE


def read_string(reader: TextReader) -> Wait[str | None]:
    """Return the content of the string that comes next; None if there is none or it is broken."""
    if (yield from reader.peek()) != '"':
        return None
    raw: list[str] = []
    if not (yield from stream_string(reader, raw.append)):
        return None
    content = decode("".join(raw))
    return content if isinstance(content, str) else None


def stream_string(reader: TextReader, emit: Callable[[str], None]) -> Wait[bool]:
    """Emit a string as it is written, quotes included; False if the text ends within."""
    emit((yield from reader.take()))
    while char := (yield from reader.take()):
        emit(char)
        if char == '"':
            return True
        if char == "\\":
            emit((yield from reader.take()))
    return False


def stream_value(reader: TextReader, emit: Callable[[str], None]) -> Wait[bool]:
    """Emit the value that comes next as it is written; False if it is broken.

    It is broken where the text ends within it, or at a `<` outside strings: no JSON has one, and
    it is how the markup after a call begins.
    """
    char = yield from reader.peek()
    if char == '"':
        return (yield from stream_string(reader, emit))
    if not char or char not in OPENING:
        return (yield from _stream_scalar(reader, emit))
    depth = 0
    while (char := (yield from reader.peek())) and char != "<":
        if char == '"':
            if not (yield from stream_string(reader, emit)):
                return False
            continue
        emit((yield from reader.take()))
        depth += (char in OPENING) - (char in CLOSING)
        if depth == 0:
            return True
    return False


def _stream_scalar(reader: TextReader, emit: Callable[[str], None]) -> Wait[bool]:
    """Emit a number or word; False if nothing of the kind comes next."""
    is_empty = True
    while (char := (yield from reader.peek())) and char not in ENDS_SCALAR:
        emit((yield from reader.take()))
        is_empty = False
    return not is_empty


def decode(text: str) -> Any:
    """Return what a JSON text means; None if it is none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(word: str) -> None:
    """Python's decoder takes NaN and Infinity; JSON has neither."""
    raise ValueError(word)
