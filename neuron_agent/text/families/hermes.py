"""Hermes, Qwen and their like: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

It knows this markup alone. Several objects within one pair of tags are several calls, and a
closing tag that is missing is not missed.
"""

from dataclasses import dataclass

from neuron_agent.text.calls import Tools, accept_any, read_call_objects
from neuron_agent.text.pieces import Pieces
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

OPENING, CLOSING = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Hermes:
    markers: tuple[str, ...] = (OPENING,)
    can_begin_bare: bool = False

    def read(self, marker: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[bool]:
        yield from reader.take_while(WHITESPACE)
        if not (yield from read_call_objects(reader, pieces, accept_any)):
            return False
        yield from take_closing(reader, CLOSING)
        return True


def take_closing(reader: TextReader, closing: str) -> Wait[None]:
    """Take white space and a closing tag if one is there."""
    reader.keep()
    yield from reader.take_while(WHITESPACE)
    if (yield from reader.take_one_of((closing,))):
        reader.forget()
    else:
        reader.give_back()
