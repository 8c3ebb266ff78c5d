"""Tools that take any text, for models that know functions alone: the text is one argument.

A model calls `{"input": "..."}`; the client is told the text as it grows, as if there had been no
JSON around it. It knows neither items nor events.
"""

import json
import re
from typing import Any

import msgspec

ARGUMENT = "input"
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {ARGUMENT: {"type": "string"}},
    "required": [ARGUMENT],
    "additionalProperties": False,
}
_START = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# Characters that are complete; both halves of a surrogate pair are one.
_CHARACTERS = re.compile(
    r'(?:[^"\\]++|\\["\\/bfnrt]|\\u(?:[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|(?![dD][89a-fA-F])[0-9a-fA-F]{4}))*+"
)
_END = re.compile(r'"\s*\}\s*\Z')
_LONGEST_ESCAPE = len(r"\ud83d\ude00")


class Format(msgspec.Struct, frozen=True):
    type: str
    syntax: str | None = None
    definition: str | None = None


class CustomTool(msgspec.Struct, frozen=True):
    name: str
    description: str | None = None
    format: Format | None = None

    @property
    def shown_description(self) -> str:
        """What a model is told of it; of a grammar it can only be told."""
        told = [self.description or ""]
        if self.format is not None and self.format.definition:
            told.append(f"`{ARGUMENT}` follows this grammar ({self.format.syntax}):")
            told.append(self.format.definition)
        return "\n\n".join(filter(None, told))


def as_arguments(text: str) -> str:
    """Return the arguments of the call that a client was shown as a text."""
    return msgspec.json.encode({ARGUMENT: text}).decode()


class TextReader:
    """Takes the text out of a call's arguments. State is what cannot be told yet, and where it is.

    What a model writes need not be what it was asked for: in the end nothing of it is lost.
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False
        self._is_over = False

    def feed(self, piece: str) -> str:
        """Return what is known of the text now, beyond what was returned before."""
        if self._is_over:
            return ""
        self._held += piece
        if not self._is_inside:
            start = _START.match(self._held)
            if start is None:
                return ""
            self._is_inside = True
            self._held = self._held[start.end() :]
        return self._complete_characters()

    def finish(self) -> str:
        """Return the rest: an escape that was cut off is none, other arguments are all the text."""
        held, self._held, was_over = self._held, "", self._is_over
        self._is_over = True
        if was_over:
            return ""
        if self._is_inside:
            return _END.sub("", held) if len(held) > _LONGEST_ESCAPE else ""
        return _only_text(held)

    def _complete_characters(self) -> str:
        found = _CHARACTERS.match(self._held)
        assert found is not None  # it may be empty
        self._held = self._held[found.end() :]
        self._is_over = self._held.startswith('"')
        text = found[0]
        return str(json.loads(f'"{text}"', strict=False)) if "\\" in text else text


def _only_text(arguments: str) -> str:
    """Return the text if it is there under another name, else the arguments as they are."""
    try:
        match list(json.loads(arguments).values()):
            case [str(text)]:
                return text
    except (ValueError, AttributeError, RecursionError):
        pass
    return "" if arguments.strip() == "{}" else arguments
