"""Tools and the choice among them: what a neuron is told, what is left out, what is refused."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.anthropic.tools import Tool, ToolChoice, swapped_id, tool_fields
from inference.wire.errors import InvalidRequest

SCHEMA = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": {}}
CUSTOM = {"name": "f", "description": "does f", "input_schema": SCHEMA, "defer_loading": True}
FUNCTION = {
    "type": "function",
    "function": {"name": "f", "description": "does f", "parameters": SCHEMA},
}
SERVER = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}


def translated(tools: list[Any], choice: Any = None) -> dict[str, Any]:
    fields = tool_fields(
        msgspec.json.decode(json.dumps(tools).encode(), type=list[Tool]),
        None if choice is None else msgspec.convert(choice, ToolChoice),
    )
    told: dict[str, Any] = json.loads(msgspec.json.encode(fields))
    return told


@given(st.text())
def test_an_id_swapped_twice_is_itself(call_id: str) -> None:
    for possible in (call_id, "call_" + call_id, "toolu_" + call_id):
        assert swapped_id(swapped_id(possible)) == possible
    assert swapped_id("call_" + call_id) == "toolu_" + call_id


def test_a_tool_goes_with_its_schema_as_it_came() -> None:
    assert translated([CUSTOM]) == {"tools": [FUNCTION]}
    assert translated([{**CUSTOM, "type": "custom", "strict": True}]) == {"tools": [FUNCTION]}
    plain = {"name": "f", "parameters": SCHEMA}
    no_words = {"name": "f", "input_schema": SCHEMA}
    assert translated([no_words]) == {"tools": [{"type": "function", "function": plain}]}


@pytest.mark.parametrize(
    "server_tool",
    [
        SERVER,
        {"type": "bash_20250124", "name": "bash"},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
        {"type": "web_search_20250305", "name": "web_search", "input_schema": None},
    ],
)
def test_a_tool_of_a_providers_own_is_left_out(server_tool: dict[str, Any]) -> None:
    assert translated([server_tool, CUSTOM]) == {"tools": [FUNCTION]}
    assert translated([server_tool], {"type": "auto"}) == {}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_a_choice_is_openais(choice: dict[str, Any], expected: Any) -> None:
    assert translated([CUSTOM], choice) == {"tools": [FUNCTION], "tool_choice": expected}


def test_nobody_is_forced_to_call_what_was_left_out() -> None:
    named = {"type": "tool", "name": "web_search"}
    assert translated([SERVER], named) == {}
    assert translated([SERVER], {"type": "any"}) == {}
    assert translated([SERVER, CUSTOM], named) == {"tools": [FUNCTION]}


def test_without_tools_there_is_no_choice_to_tell() -> None:
    assert translated([]) == {}
    assert translated([], {"type": "auto"}) == {}
    assert translated([], {"type": "none"}) == {}


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{"name": "f"}], None, "tools.0.input_schema"),
        ([CUSTOM, {"type": "custom", "name": "g"}], None, "tools.1.input_schema"),
        ([{"name": "f", "input_schema": None}], None, "tools.0.input_schema"),
        ([{"name": "f", "input_schema": []}], None, "tools.0.input_schema"),
        ([{"name": "f", "input_schema": "x"}], None, "tools.0.input_schema"),
        ([{"input_schema": SCHEMA}], None, "tools.0.name"),
        ([{"name": "", "input_schema": SCHEMA}], None, "tools.0.name"),
        ([CUSTOM, CUSTOM], None, "tools"),
        ([], {"type": "any"}, "tool_choice"),
        ([CUSTOM], {"type": "tool"}, "tool_choice.name"),
        ([CUSTOM], {"type": "tool", "name": "g"}, "tool_choice.name"),
        ([], {"type": "tool", "name": "g"}, "tool_choice.name"),
    ],
)
def test_what_makes_no_sense_is_named(
    tools: list[Any], choice: dict[str, Any] | None, param: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        translated(tools, choice)
    assert raised.value.param == param
    assert raised.value.message.startswith(f"{param}: ")
