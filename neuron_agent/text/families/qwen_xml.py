"""Qwen's coders: `<tool_call><function=f><parameter=p>value</parameter></function></tool_call>`.

It knows this markup alone. The values are plain text: strings go out as they come, in JSON's
escapes; values of other types when they are whole, if they are what the tool's schema says, else
as strings. The line breaks next to a value's tags are the markup's. The outer tags may be missing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuron_agent.text.calls import Tools
from neuron_agent.text.families.hermes import CLOSING, OPENING, take_closing
from neuron_agent.text.json_reader import decode
from neuron_agent.text.pieces import Pieces
from neuron_agent.text.reader import WHITESPACE, TextReader, Wait

FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_ENDS = "<parameter=", ("\n</parameter>", "</parameter>")
MAX_REFERENCES = 8
"""A chain of references that is longer leads nowhere."""
WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}


@dataclass(frozen=True, slots=True)
class QwenXml:
    markers: tuple[str, ...] = (OPENING, FUNCTION)
    can_begin_bare: bool = False

    def read(self, marker: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[bool]:
        if marker == OPENING:
            yield from reader.take_while(WHITESPACE)
            if not (yield from reader.take_one_of((FUNCTION,))):
                return False
        name = yield from _read_name(reader)
        if not name:
            return False
        reader.forget()
        pieces.start_call(name)
        yield from _read_arguments(name, reader, pieces, tools)
        return True


def _read_name(reader: TextReader) -> Wait[str]:
    """Return what stands before the next `>`; nothing if that is no name."""
    name: list[str] = []
    while (char := (yield from reader.peek())) and char not in WHITESPACE + "<>":
        name.append((yield from reader.take()))
    return "".join(name) if (yield from reader.take()) == ">" else ""


def _read_arguments(name: str, reader: TextReader, pieces: Pieces, tools: Tools) -> Wait[None]:
    """Read the parameters and both closing tags. A text that ends within leaves them open."""
    separator = "{"
    while (yield from take_tag(reader, PARAMETER)):
        key = yield from _read_name(reader)
        pieces.add_arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
        types = schema_types(tools.property_schema(name, key), tools.schemas.get(name))
        yield from reader.take_one_of(("\n",))
        if not (yield from read_value(reader, pieces.add_arguments, types, PARAMETER_ENDS)):
            return
        separator = ", "
    is_closed = yield from take_tag(reader, FUNCTION_END)
    if is_closed or (yield from reader.peek()):
        pieces.add_arguments("{}" if separator == "{" else "}")
    if is_closed:
        yield from take_closing(reader, CLOSING)


def take_tag(reader: TextReader, tag: str) -> Wait[bool]:
    """Take white space and this tag if that is what comes next, else nothing."""
    reader.keep()
    yield from reader.take_while(WHITESPACE)
    is_there = bool((yield from reader.take_one_of((tag,))))
    if is_there:
        reader.forget()
    else:
        reader.give_back()
    return is_there


def read_value(
    reader: TextReader,
    emit: Callable[[str], None],
    types: frozenset[str],
    ends: Sequence[str],
) -> Wait[bool]:
    """Emit a value up to one of these ends as JSON; False if the text ends within it."""
    if types == {"string"}:
        emit('"')
        end = yield from reader.take_until(ends, lambda text: emit(_escaped(text)))
        emit('"' if end else "")
        return bool(end)
    parts: list[str] = []
    end = yield from reader.take_until(ends, parts.append)
    emit(typed("".join(parts), types) if end else "")
    return bool(end)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def schema_types(schema: Any, root: Any, depth: int = 0) -> frozenset[str]:
    """Return the JSON types a schema allows; one that does not say means a string.

    `root` is the schema it stands in, to which its references refer.
    """
    if depth > MAX_REFERENCES:
        return frozenset()
    schema = resolved(schema, root)
    named = schema.get("type")
    if isinstance(named, str | list):
        return frozenset([named] if isinstance(named, str) else map(str, named))
    branches = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if isinstance(branches, list):
        return frozenset().union(*(schema_types(branch, root, depth + 1) for branch in branches))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if isinstance(values, list) and values:
        return frozenset(_type_of(value) for value in values)
    return frozenset({"string"})


def resolved(schema: Any, root: Any) -> Mapping[str, Any]:
    """Return what a schema that is a reference refers to; empty where that is nowhere."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            break
        schema = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return schema if isinstance(schema, Mapping) else {}


def typed(text: str, types: frozenset[str]) -> str:
    """Return a value as JSON text: of one of the types if it can be read so, else a string."""
    bare = text.strip()
    bare = WORDS.get(bare.lower(), bare)
    value = decode(bare)
    if isinstance(value, float) and "number" not in types and value.is_integer():
        bare, value = str(int(value)), int(value)
    is_value = value is not None or bare == "null"
    kind = _type_of(value) if is_value else "string"
    if kind != "string" and (kind in types or (kind == "integer" and "number" in types)):
        return bare
    return json.dumps(text, ensure_ascii=False)


def _type_of(value: Any) -> str:
    """Return the JSON type of a decoded value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case dict():
            return "object"
        case list():
            return "array"
        case _:
            return "string"
