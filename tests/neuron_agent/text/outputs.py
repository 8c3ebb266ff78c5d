"""What the tests of output parsing share: formats by family, tools, parsing, texts to parse."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.output_parser import ReasoningMarks
from neuron_agent.text.pieces import CallArguments, CallStarted, Piece, Said, Thought

THINK = ReasoningMarks("<think>", "</think>")
FORMATS = [
    OutputFormat(reasoning=marks, tools=family) for marks in (THINK, None) for family in ToolFamily
]

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "ratio": {"type": "number"},
        "is_dry": {"type": "boolean"},
        "where": {"type": "object"},
        "tags": {"type": "array"},
    },
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": PARAMETERS},
}
TOOLS = [WEATHER, {"type": "function", "function": {"name": "ping"}}]

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(['"}]{[', "</tool_call>", "\\", "[TOOL_CALLS]", "\u2028<think>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
JSON_OBJECTS = st.dictionaries(st.text(), JSON_VALUES, max_size=4)

MARKUP = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "get_weather", "ping", ">",
    "</function>", "<parameter=", "city", "days", "</parameter>", "[TOOL_CALLS]", "[ARGS]", "[",
    "]", "<|python_tag|>", '{"name": "', '", "arguments": {', '"parameters": ', "{}", "}", '"', ":",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    ",", ";", "\n", " ", "\\", "<", "7", "ü", "\U0001f642", "word",
]  # fmt: skip
OUTPUTS = st.lists(st.sampled_from(MARKUP), max_size=16).map("".join)
"""Texts that look like markup, nearly all of them broken."""


def parse(
    output_format: OutputFormat,
    parts: Sequence[str],
    *,
    starts_reasoning: bool = False,
    tools: Sequence[dict[str, Any]] = TOOLS,
) -> list[Piece]:
    """Return the pieces of an output that comes in these parts."""
    parser = output_format.new_parser(starts_reasoning=starts_reasoning, tools=tools)
    pieces = [piece for part in parts for piece in parser.feed(part)]
    return merged([*pieces, *parser.finish()])


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces with neighbours of one kind as one."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if isinstance(last, Said) and isinstance(piece, Said):
            found[-1] = Said(last.text + piece.text)
        elif isinstance(last, Thought) and isinstance(piece, Thought):
            found[-1] = Thought(last.text + piece.text)
        elif isinstance(last, CallArguments) and isinstance(piece, CallArguments):
            assert last.index == piece.index
            found[-1] = CallArguments(last.index, last.text + piece.text)
        else:
            found.append(piece)
    return found


def calls_of(pieces: Sequence[Piece]) -> list[tuple[str, Any]]:
    """Return the calls with their arguments decoded; each must be complete."""
    names = [piece.name for piece in pieces if isinstance(piece, CallStarted)]
    texts = ["".join(arguments_of(pieces, index)) for index in range(len(names))]
    return [(name, json.loads(text)) for name, text in zip(names, texts, strict=True)]


def arguments_of(pieces: Sequence[Piece], index: int) -> list[str]:
    return [p.text for p in pieces if isinstance(p, CallArguments) and p.index == index]


def said(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Said))
