"""Llama 3: `{"name": ..., "parameters": {...}}`, with or without `<|python_tag|>` before it.

It knows this markup alone. Without the tag only an answer that begins with the object can be a
call, and only of a tool of the request: an answer may be JSON for other reasons. Several calls are
separated by semicolons.
"""

from dataclasses import dataclass

from neuron_agent.text.calls import Tools, accept_any, read_call_objects
from neuron_agent.text.pieces import Pieces
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class Llama:
    markers: tuple[str, ...] = (TAG,)
    can_begin_bare: bool = True

    def read(self, marker: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[bool]:
        yield from reader.take_while(WHITESPACE)
        accepts = accept_any if marker else tools.schemas.__contains__
        return (
            yield from read_call_objects(
                reader, pieces, accepts, separators=";", needs_arguments=True
            )
        )
