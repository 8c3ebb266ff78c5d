"""Calls in <tool_call> tags: what is well-formed comes out exactly, the rest as it was sent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.pieces import CallArguments, CallStarted, Said
from tests.neuron_agent.text.outputs import JSON_OBJECTS, calls_of, parse, said

HERMES = OutputFormat(tools=ToolFamily.HERMES)
NAMES = st.text(min_size=1, max_size=8)
CALLS = st.lists(st.tuples(NAMES, JSON_OBJECTS), max_size=3)
PLAIN = st.text(alphabet='abc {}"\n', max_size=8).map(str.strip)


def written(name: str, arguments: Any, ascii_only: bool = False) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only)
    return f"<tool_call>\n{call}\n</tool_call>"


@given(CALLS, st.booleans())
def test_calls_come_out_exactly(calls: list[tuple[str, Any]], ascii_only: bool) -> None:
    text = "\n".join(written(name, arguments, ascii_only) for name, arguments in calls)
    pieces = parse(HERMES, list(text))
    assert calls_of(pieces) == calls
    assert said(pieces) == ""


@given(st.lists(st.tuples(PLAIN, NAMES, JSON_OBJECTS), max_size=3), PLAIN)
def test_text_between_calls_comes_out_exactly(parts: list[tuple[str, str, Any]], rest: str) -> None:
    text = "".join(before + written(name, arguments) for before, name, arguments in parts) + rest
    pieces = parse(HERMES, list(text))
    assert said(pieces) == "".join(before for before, _, _ in parts) + rest
    assert calls_of(pieces) == [(name, arguments) for _, name, arguments in parts]


@given(JSON_OBJECTS)
def test_arguments_pass_as_they_were_written(arguments: dict[str, Any]) -> None:
    raw = json.dumps(arguments, indent=2)
    text = f'<tool_call>{{"name":"f","arguments":{raw}}}</tool_call>'
    passed = [piece.text for piece in parse(HERMES, [text]) if isinstance(piece, CallArguments)]
    assert passed == [raw]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', {"a": 1}),
        ('{"id": [1, {"x": "}"}], "name": "f", "type": null, "arguments": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "parameters": {"a": 1}}', {"a": 1}),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', {"a": 1}),
        ('{"arguments": "{\\"a\\": 1}", "name": "f"}', {"a": 1}),
        ('{"name": "f", "arguments": {"a": 1}, "name": "g"}', {"a": 1}),
        ('{"name": "f", "arguments": null}', {}),
        ('{"name": "f"}', {}),
        ('{ "name" : "f" , "arguments" : { "a" : "</tool_call>" } }', {"a": "</tool_call>"}),
    ],
)
def test_calls_in_other_words_are_calls(call: str, arguments: dict[str, Any]) -> None:
    pieces = parse(HERMES, list(f"<tool_call>{call}</tool_call>"))
    assert calls_of(pieces) == [("f", arguments)]
    assert said(pieces) == ""


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "a <tool_call> b",
        "\n<tool_call>[1]</tool_call>\n",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "argum',
        '<tool_call>{"name": "f" "arguments": {}}</tool_call>',
        '<tool_call>{name: "f"}</tool_call>',
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "\\x", "arguments": {}}',
        "</tool_call>",
    ],
)
def test_what_is_no_call_is_text_verbatim(text: str) -> None:
    assert parse(HERMES, list(text)) == [Said(text)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": "unfin', '{"a": "unfin'),
        ('<tool_call>{"name": "f", "arguments": {"a": [1', '{"a": [1'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>', '{"a": 1'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}', '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', '{"a": 1}'),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', "[1]"),
    ],
)
def test_a_broken_call_keeps_what_was_streamed(text: str, arguments: str) -> None:
    assert parse(HERMES, list(text)) == [CallStarted(0, "f"), CallArguments(0, arguments)]


def test_text_that_is_no_call_hides_no_call_behind_it() -> None:
    pieces = parse(HERMES, list(f"<tool_call> no\n{written('f', {})}\nyes"))
    assert said(pieces) == "<tool_call> no\nyes"
    assert calls_of(pieces) == [("f", {})]


def test_a_missing_closing_tag_ends_no_later_call() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}'
    pieces = parse(HERMES, list(f"{call}\n{call} and text"))
    assert calls_of(pieces) == [("f", {}), ("f", {})]
    assert said(pieces) == " and text"


def test_several_objects_in_one_pair_of_tags_are_several_calls() -> None:
    call = '{"name": "f", "arguments": {}}'
    assert calls_of(parse(HERMES, [f"<tool_call>{call}\n{call}</tool_call>"])) == [("f", {})] * 2
