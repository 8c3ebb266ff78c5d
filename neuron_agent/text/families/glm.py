"""GLM: `<tool_call>f<arg_key>k</arg_key><arg_value>value</arg_value></tool_call>`.

It knows this markup alone. Between its tags may be line breaks. The values are plain text, typed by
the tool's schema as Qwen's coders' are.
"""

import json
from dataclasses import dataclass

from neuron_agent.text.calls import Tools
from neuron_agent.text.families.hermes import CLOSING, OPENING
from neuron_agent.text.families.qwen_xml import read_value, schema_types, take_tag
from neuron_agent.text.pieces import Pieces
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

KEY, KEY_END = "<arg_key>", "</arg_key>"
VALUE, VALUE_END = "<arg_value>", "</arg_value>"


@dataclass(frozen=True, slots=True)
class Glm:
    markers: tuple[str, ...] = (OPENING,)
    can_begin_bare: bool = False

    def read(self, marker: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[bool]:
        yield from reader.take_while(WHITESPACE)
        name = yield from _read_name(reader)
        yield from reader.take_while(WHITESPACE)
        tag = yield from reader.take_one_of((KEY, CLOSING))
        if not name or not tag:
            return False
        reader.forget()
        pieces.start_call(name)
        if tag == CLOSING:
            pieces.add_arguments("{}")
        else:
            yield from _read_arguments(name, reader, pieces, tools)
        return True


def _read_name(reader: TextReader) -> Wait[str]:
    """Return what stands before the next white space or tag."""
    name: list[str] = []
    while (char := (yield from reader.peek())) and char not in WHITESPACE + "<>{":
        name.append((yield from reader.take()))
    return "".join(name)


def _read_arguments(name: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[None]:
    """Read keys and values, the first key's tag being taken. Broken ones leave them open."""
    separator = "{"
    while True:
        key: list[str] = []
        if not (yield from reader.take_until((KEY_END,), key.append)):
            return
        if not (yield from take_tag(reader, VALUE)):
            return
        word = "".join(key).strip()
        pieces.add_arguments(f"{separator}{json.dumps(word, ensure_ascii=False)}: ")
        types = schema_types(tools.property_schema(name, word), tools.schemas.get(name))
        if not (yield from read_value(reader, pieces.add_arguments, types, (VALUE_END,))):
            return
        separator = ", "
        if not (yield from take_tag(reader, KEY)):
            break
    is_closed = yield from take_tag(reader, CLOSING)
    if is_closed or (yield from reader.peek()):
        pieces.add_arguments("}")
