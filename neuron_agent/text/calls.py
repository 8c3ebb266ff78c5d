"""What the readers of all families of tool calls share: when a call counts, and its JSON form.

A family's reader (`Family.read`) is a generator that reads the calls that follow an opening
marker. It returns False if what follows is no call: then it has put nothing out, and everything it
read is text. Once it has started a call it returns True, however the rest turned out: a name that
was given cannot be taken back.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from neuron_agent.text.json_reader import decode, read_string, stream_value
from neuron_agent.text.pieces import Pieces
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

NAME_KEY = "name"
ARGUMENTS_KEYS = ("arguments", "parameters")
FIRST_KEYS = frozenset({"type", "id", "function", NAME_KEY, *ARGUMENTS_KEYS})
"""What may stand before the name where an answer may be JSON for other reasons."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request by name, each with the JSON schema of its arguments."""

    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]]) -> "Tools":
        """Return the tools of an OpenAI request: `{"type": "function", "function": {...}}`."""
        schemas = {}
        for tool in tools:
            function = tool.get("function")
            if isinstance(function, Mapping):
                schema = function.get("parameters")
                schemas[str(function.get("name"))] = schema if isinstance(schema, Mapping) else {}
        return cls(schemas)

    def property_schema(self, tool: str, name: str) -> Any:
        """Return the schema of one argument, None where nothing is known of it."""
        properties = self.schemas.get(tool, {}).get("properties")
        return properties.get(name) if isinstance(properties, Mapping) else None


class Family(Protocol):
    """How one family of models writes tool calls."""

    @property
    def markers(self) -> Sequence[str]:
        """What opens calls; each stands in the text as it is."""

    @property
    def can_begin_bare(self) -> bool:
        """Whether an answer that begins with `{` may be a call without a marker."""

    def read(self, marker: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[bool]:
        """Read what follows a marker (empty: none). Return whether it was a call."""


def read_call_object(
    reader: TextReader, pieces: Pieces, accepts: Callable[[str], bool], needs_arguments: bool
) -> Wait[bool]:
    """Read `{"name": ..., "arguments": {...}}`, in any order and with other members.

    The call starts when its name is known and its arguments begin, so that an object that only
    resembles one is still text. Without arguments it is a call only if they are not needed.
    """
    call = _CallObject(reader, pieces, accepts, takes_any_key=not needs_arguments)
    if (yield from reader.take()) != "{":
        return False
    while True:
        yield from reader.take_while(WHITESPACE)
        if not (yield from call.read_member()):
            return call.is_started
        yield from reader.take_while(WHITESPACE)
        match (yield from reader.peek()):
            case ",":
                yield from reader.take()
            case "}":
                yield from reader.take()
                return call.close(needs_arguments)
            case _:
                return call.is_started


def read_call_objects(
    reader: TextReader,
    pieces: Pieces,
    accepts: Callable[[str], bool],
    *,
    separators: str = "",
    needs_arguments: bool = False,
) -> Wait[bool]:
    """Read one call object after another; whether there was any. What follows is not taken."""
    has_read = False
    while (yield from read_call_object(reader, pieces, accepts, needs_arguments)):
        has_read = True
        reader.keep()
        yield from reader.take_while(WHITESPACE + separators)
        if (yield from reader.peek()) != "{":
            break
    if has_read:
        reader.give_back()  # to the end of the last call
    return has_read


def accept_any(_: str) -> bool:
    """Behind a marker any name is a call's: whether there is such a tool is the client's say."""
    return True


class _CallObject:
    """The members of one call so far."""

    def __init__(
        self,
        reader: TextReader,
        pieces: Pieces,
        accepts: Callable[[str], bool],
        takes_any_key: bool,
    ) -> None:
        self._reader = reader
        self._pieces = pieces
        self._accepts = accepts
        self._takes_any_key = takes_any_key
        self._name: str | None = None
        self._early_arguments: str | None = None  # arguments that came before the name
        self.is_started = False

    def read_member(self) -> Wait[bool]:
        """Read `"key": value`; False if it is none, or makes this no call."""
        key = yield from read_string(self._reader)
        if key is None:
            return False
        if self._name is None and not self._takes_any_key and key not in FIRST_KEYS:
            return False  # other JSON: it need not be held back until its end
        yield from self._reader.take_while(WHITESPACE)
        if (yield from self._reader.take()) != ":":
            return False
        yield from self._reader.take_while(WHITESPACE)
        if key == NAME_KEY and self._name is None:
            self._name = yield from read_string(self._reader)
            return bool(self._name) and self._accepts(self._name or "")
        if key in ARGUMENTS_KEYS and not self.is_started and self._early_arguments is None:
            return (yield from self._read_arguments())
        return (yield from stream_value(self._reader, _ignore))

    def close(self, needs_arguments: bool) -> bool:
        """The object is complete: whether it was a call."""
        if self._name is None or (needs_arguments and self._early_arguments is None):
            return self.is_started
        if not self.is_started:
            self._start()
            self._pieces.add_arguments(self._early_arguments or "{}")
        return True

    def _read_arguments(self) -> Wait[bool]:
        if self._name is not None:
            self._start()
        if self.is_started and (yield from self._reader.peek()) == "{":
            return (yield from stream_value(self._reader, self._pieces.add_arguments))
        raw: list[str] = []
        is_whole = yield from stream_value(self._reader, raw.append)
        arguments = _plain_arguments("".join(raw))
        if self.is_started:
            self._pieces.add_arguments(arguments)
        else:
            self._early_arguments = arguments
        return is_whole

    def _start(self) -> None:
        self._reader.forget()
        self._pieces.start_call(self._name or "")
        self.is_started = True


def _plain_arguments(raw: str) -> str:
    """Return arguments that are no object as one: null is none, a string has JSON within.

    What is neither is handed on as it is: the client sees what the model wrote.
    """
    decoded = decode(raw)
    if isinstance(decoded, str):
        return decoded
    return "{}" if raw == "null" else raw


def _ignore(_: str) -> None:
    """A member that no call needs."""
