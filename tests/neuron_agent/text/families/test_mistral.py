"""Mistral's two ways to write calls: a list, or a name and arguments behind each mark."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.pieces import CallArguments, CallStarted, Said
from tests.neuron_agent.text.outputs import JSON_OBJECTS, calls_of, parse, said

MISTRAL = OutputFormat(tools=ToolFamily.MISTRAL)
NAMES = st.text(alphabet="abz09_-", min_size=1, max_size=8)
CALLS = st.lists(st.tuples(NAMES, JSON_OBJECTS), min_size=1, max_size=3)


@given(CALLS, st.booleans())
def test_a_list_of_calls_comes_out_exactly(calls: list[tuple[str, Any]], is_spaced: bool) -> None:
    objects = [{"name": name, "arguments": arguments, "id": "x"} for name, arguments in calls]
    pieces = parse(MISTRAL, list(f"Hm.\n[TOOL_CALLS]{' ' * is_spaced}{json.dumps(objects)}"))
    assert calls_of(pieces) == calls
    assert said(pieces) == "Hm."


@given(CALLS, st.sampled_from(["[ARGS]", "[CALL_ID]ab12[ARGS]", ""]))
def test_named_calls_come_out_exactly(calls: list[tuple[str, Any]], mark: str) -> None:
    text = "".join(f"[TOOL_CALLS]{name}{mark}{json.dumps(each)}" for name, each in calls)
    pieces = parse(MISTRAL, list(text))
    assert calls_of(pieces) == calls
    assert said(pieces) == ""


@pytest.mark.parametrize(
    "text",
    [
        "[TOOL_CALLS]",
        "[TOOL_CALLS] and",
        "[TOOL_CALLS][]",
        "[TOOL_CALLS][1, 2]",
        "a [TOOL_CALLS]f g",
        "[TOOL_CALLS]{}",
        "[TOOL_CALLS]f[CALL_ID]",
        "[TOOL",
    ],
)
def test_what_is_no_call_is_text_verbatim(text: str) -> None:
    assert parse(MISTRAL, list(text)) == [Said(text)]


def test_a_broken_call_keeps_what_was_streamed() -> None:
    pieces = parse(MISTRAL, list('[TOOL_CALLS]f[ARGS]{"a": "b'))
    assert pieces == [CallStarted(0, "f"), CallArguments(0, '{"a": "b')]


def test_text_after_a_list_is_said() -> None:
    pieces = parse(MISTRAL, list('[TOOL_CALLS] [{"name": "f", "arguments": {}} ] so'))
    assert calls_of(pieces) == [("f", {})]
    assert said(pieces) == " so"
