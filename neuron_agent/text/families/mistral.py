"""Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, newer `[TOOL_CALLS]name[ARGS]{...}`.

It knows this markup alone. The newer form may carry an id, which is dropped: ids are the wire's.
"""

import string
from dataclasses import dataclass

from neuron_agent.text.calls import Tools, accept_any, read_call_objects
from neuron_agent.text.families.hermes import take_closing
from neuron_agent.text.json_reader import stream_value
from neuron_agent.text.pieces import Pieces
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

CALLS, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
NAME_CHARACTERS = string.ascii_letters + string.digits + "_-.:/"


@dataclass(frozen=True, slots=True)
class Mistral:
    markers: tuple[str, ...] = (CALLS,)
    can_begin_bare: bool = False

    def read(self, marker: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[bool]:
        yield from reader.take_while(WHITESPACE)
        if (yield from reader.peek()) != "[":
            return (yield from _read_named(reader, pieces))
        yield from reader.take()
        yield from reader.take_while(WHITESPACE)
        if not (yield from read_call_objects(reader, pieces, accept_any, separators=",")):
            return False
        yield from take_closing(reader, "]")
        return True


def _read_named(reader: TextReader, pieces: Pieces) -> Wait[bool]:
    """Read `name[ARGS]{...}`; the marks between name and arguments may be missing."""
    name = yield from reader.take_while(NAME_CHARACTERS)
    while (mark := (yield from reader.take_one_of((ARGUMENTS, CALL_ID)))) == CALL_ID:
        yield from reader.take_while(NAME_CHARACTERS)
    yield from reader.take_while(WHITESPACE)
    if not name or (not mark and (yield from reader.peek()) != "{"):
        return False
    reader.forget()
    pieces.start_call(name)
    yield from stream_value(reader, pieces.add_arguments)
    return True
