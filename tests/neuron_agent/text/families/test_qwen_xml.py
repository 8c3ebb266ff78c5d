"""Calls as tags: values become JSON of the type their schema says, strings while they come."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.families.qwen_xml import schema_types, typed
from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.pieces import CallArguments, CallStarted, Said
from tests.neuron_agent.text.outputs import JSON_OBJECTS, TOOLS, calls_of, parse, said

XML = OutputFormat(tools=ToolFamily.QWEN_XML)
TEXTS = st.text().filter(lambda text: "</parameter>" not in text)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": TEXTS,
        "days": st.integers(),
        "ratio": st.floats(allow_nan=False, allow_infinity=False),
        "is_dry": st.booleans(),
        "where": JSON_OBJECTS.filter(lambda value: "</parameter>" not in str(value)),
        "tags": st.lists(TEXTS),
        "unknown": TEXTS,
    },
)


def written(name: str, arguments: dict[str, Any], has_outer_tag: bool = True) -> str:
    values = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in arguments.items()
    }
    lines = [f"<parameter={key}>\n{value}\n</parameter>" for key, value in values.items()]
    call = "\n".join([f"<function={name}>", *lines, "</function>"])
    return f"<tool_call>\n{call}\n</tool_call>" if has_outer_tag else call


@given(st.lists(ARGUMENTS, min_size=1, max_size=3), st.booleans())
def test_calls_come_out_exactly(calls: list[dict[str, Any]], has_outer_tag: bool) -> None:
    text = "\n".join(written("get_weather", each, has_outer_tag) for each in calls)
    pieces = parse(XML, list(text))
    assert calls_of(pieces) == [("get_weather", each) for each in calls]
    assert said(pieces) == ""


def test_strings_stream_as_json() -> None:
    parser = XML.new_parser(starts_reasoning=False, tools=TOOLS)
    parser.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\n")
    assert parser.feed('a "b') == [CallArguments(0, 'a \\"b')]
    assert parser.feed("\nc\n</para") == [CallArguments(0, "\\nc")]
    assert parser.feed("m") == []
    assert parser.feed("x") == [CallArguments(0, "\\n</paramx")]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n<function=",
        "<function= f>",
        "<function=>",
        "<function=f",
        "a <tool_call> b",
    ],
)
def test_what_is_no_call_is_text_verbatim(text: str) -> None:
    assert parse(XML, list(text)) == [Said(text)]


@pytest.mark.parametrize(
    ("text", "arguments", "rest"),
    [
        ("<function=f>", "", ""),
        ("<function=f>\n<parameter=a>\nx", '{"a": "x', ""),
        ("<function=f><parameter=a>x</parameter>", '{"a": "x"', ""),
        ("<function=f><parameter=a>x</parameter></tool_call>", '{"a": "x"}', "</tool_call>"),
        ("<function=f></function></tool_call> so", "{}", " so"),
        ("<function=f>oops", "{}", "oops"),
    ],
)
def test_a_broken_call_keeps_what_was_streamed(text: str, arguments: str, rest: str) -> None:
    pieces = parse(XML, list(text))
    assert pieces[0] == CallStarted(0, "f")
    passed = [piece.text for piece in pieces if isinstance(piece, CallArguments)]
    assert "".join(passed) == arguments
    assert said(pieces) == rest


@pytest.mark.parametrize(
    ("text", "types", "value"),
    [
        (" 7 ", {"integer"}, 7),
        ("7.0", {"integer"}, 7),
        ("7.5", {"integer"}, "7.5"),
        ("7", {"number"}, 7),
        ("1e3", {"number"}, 1000.0),
        ("True", {"boolean"}, True),
        ("None", {"string", "null"}, None),
        ("null", {"string"}, "null"),
        ('{"a": [1]}', {"object"}, {"a": [1]}),
        ("{'a': 1}", {"object"}, "{'a': 1}"),
        ("[1,", {"array"}, "[1,"),
        ('"quoted"', {"integer"}, '"quoted"'),
        ("9" * 5000, {"integer"}, "9" * 5000),
        ("NaN", {"number"}, "NaN"),
        ("1e999", {"integer"}, "1e999"),
        ("", {"integer"}, ""),
    ],
)
def test_values_are_typed_if_they_can_be(text: str, types: set[str], value: Any) -> None:
    assert json.loads(typed(text, frozenset(types)), parse_constant=pytest.fail) == value


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, {"integer"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {"integer", "null"}),
        ({"allOf": [{"$ref": "#/$defs/Place"}]}, {"object"}),
        ({"$ref": "#/$defs/Again"}, {"object"}),
        ({"$ref": "#/$defs/Nowhere"}, {"string"}),
        ({"$ref": "#/$defs/Loop"}, {"string"}),
        ({"enum": ["a", 1]}, {"string", "integer"}),
        ({"$ref": "#/$defs/Wheel"}, set()),
        ({"const": True}, {"boolean"}),
        ({}, {"string"}),
        (None, {"string"}),
        (True, {"string"}),
    ],
)
def test_types_are_what_the_schema_says(schema: Any, types: set[str]) -> None:
    definitions = {
        "Place": {"type": "object"},
        "Again": {"$ref": "#/$defs/Place"},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Wheel": {"anyOf": [{"$ref": "#/$defs/Wheel"}]},
    }
    assert schema_types(schema, {"$defs": definitions}) == types
