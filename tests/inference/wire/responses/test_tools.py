"""Flat tools, choices and formats as a chat has them."""

import json
from typing import Any

import msgspec
import pytest

from inference.wire.errors import InvalidRequest
from inference.wire.responses.freeform import PARAMETERS
from inference.wire.responses.request import parse_response_request

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FUNCTION = {
    "type": "function",
    "name": "f",
    "description": "Does it.",
    "parameters": SCHEMA,
    "strict": False,
}
OTHER = {"type": "function", "name": "g", "parameters": None}
NESTED = {
    "type": "function",
    "function": {"name": "f", "description": "Does it.", "parameters": SCHEMA, "strict": False},
}


def chat_of(**fields: Any) -> dict[str, Any]:
    body = {"model": "m", "input": "hi", **fields}
    found: dict[str, Any] = json.loads(parse_response_request(json.dumps(body).encode()).body)
    return found


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        chat_of(**fields)
    return raised.value


def test_functions_are_nested() -> None:
    assert chat_of(tools=[FUNCTION, OTHER])["tools"] == [
        NESTED,
        {"type": "function", "function": {"name": "g"}},
    ]


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search"},
        {"type": "local_shell"},
        {"type": "mcp", "server_label": "x"},
        {"type": "something new", "name": 3, "parameters": "?"},
    ],
)
def test_tools_of_other_types_are_ignored(tool: dict[str, Any]) -> None:
    assert chat_of(tools=[tool, FUNCTION])["tools"] == [NESTED]
    assert "tools" not in chat_of(tools=[tool])


def test_a_tool_that_takes_any_text_is_a_function_of_one_argument() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
    tool = {"type": "custom", "name": "h", "description": "Edits.", "format": grammar}
    [offered] = chat_of(tools=[tool])["tools"]
    assert offered["function"].pop("description").startswith("Edits.\n\n`input` follows")
    assert offered == {"type": "function", "function": {"name": "h", "parameters": PARAMETERS}}
    plain = {"type": "custom", "name": "h"}
    assert chat_of(tools=[plain])["tools"] == [offered]
    assert refused(tools=[{**plain, "name": None}]).param == "tools[0].name"


def test_a_tool_that_takes_any_text_can_be_chosen() -> None:
    tool, choice = {"type": "custom", "name": "h"}, {"type": "custom", "name": "h"}
    named = {"type": "function", "function": {"name": "h"}}
    assert chat_of(tools=[tool, FUNCTION], tool_choice=choice)["tool_choice"] == named
    assert refused(tools=[FUNCTION], tool_choice=choice).param == "tool_choice"
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [choice]}
    chat = chat_of(tools=[tool, FUNCTION], tool_choice=allowed)
    assert [offered["function"]["name"] for offered in chat["tools"]] == ["h"]


NAMESPACE = {
    "type": "namespace",
    "name": "ns",
    "description": "Things.",
    "tools": [FUNCTION, {"type": "custom", "name": "h"}, OTHER, {"type": "mcp"}],
}


def test_functions_in_a_namespace_are_offered_under_its_name() -> None:
    names = [tool["function"]["name"] for tool in chat_of(tools=[FUNCTION, NAMESPACE])["tools"]]
    assert names == ["f", "ns__f", "ns__h", "ns__g"]


def test_a_whole_namespace_may_be_allowed() -> None:
    allowed = [{"type": "namespace", "name": "ns"}]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": allowed}
    tools = chat_of(tools=[FUNCTION, NAMESPACE], tool_choice=choice)["tools"]
    assert [tool["function"]["name"] for tool in tools] == ["ns__f", "ns__h", "ns__g"]


@pytest.mark.parametrize("tools", [None, []])
def test_no_tools_are_no_tools(tools: object) -> None:
    assert "tools" not in chat_of(tools=tools)


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        ({"name": "f"}, "tools[0].type"),
        ({"type": "function"}, "tools[0].name"),
        ({"type": "function", "name": ""}, "tools[0].name"),
        ({"type": "function", "name": 3}, "tools[0].name"),
        ({"type": "function", "name": "f", "parameters": []}, "tools[0].parameters"),
        ({"type": "function", "name": "f", "strict": "yes"}, "tools[0].strict"),
        ({"type": "namespace", "name": "ns"}, "tools[0].tools"),
        ({**NAMESPACE, "tools": [OTHER, {"type": "function"}]}, "tools[0].tools[1].name"),
        ("f", "tools[0]"),
    ],
)
def test_a_wrong_tool_is_named(tool: object, param: str) -> None:
    assert refused(tools=[tool]).param == param


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", "none"),
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "name": "g"}, {"type": "function", "function": {"name": "g"}}),
    ],
)
def test_choices_are_a_chats(choice: object, expected: object) -> None:
    assert chat_of(tools=[FUNCTION, OTHER], tool_choice=choice)["tool_choice"] == expected
    assert "tool_choice" not in chat_of(tools=[FUNCTION], tool_choice=None)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_tools_are_offered(mode: str) -> None:
    allowed = [{"type": "function", "name": "f"}, {"type": "mcp", "server_label": "x"}]
    choice = {"type": "allowed_tools", "mode": mode, "tools": allowed}
    chat = chat_of(tools=[OTHER, FUNCTION], tool_choice=choice)
    assert (chat["tools"], chat["tool_choice"]) == ([NESTED], mode)


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "f"},
        {"type": "web_search"},
        {"type": "allowed_tools", "mode": "required", "tools": []},
        "any",
        3,
    ],
)
def test_a_choice_that_cannot_be_is_refused(choice: object) -> None:
    param = refused(tools=[{"type": "web_search"}], tool_choice=choice).param
    assert param in ("tool_choice", "tool_choice.type")


def test_a_schema_passes_unread() -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    assert chat_of(text={"format": wanted})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ({}, None),
        ({"format": None, "verbosity": "low"}, None),
        ({"format": {"type": "text"}}, None),
        ({"format": {"type": "json_object"}}, {"type": "json_object"}),
    ],
)
def test_formats_are_a_chats(text: object, expected: object) -> None:
    assert chat_of(text=text).get("response_format") == expected


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ({"format": {"type": "xml"}}, "text.format.type"),
        ({"format": {"type": "json_schema"}}, "text.format.schema"),
        ({"format": {"type": "json_schema", "schema": 3}}, "text.format.schema"),
        ({"format": "json"}, "text.format"),
        ("json", "text"),
    ],
)
def test_a_wrong_format_is_named(text: object, param: str) -> None:
    assert refused(text=text).param == param


def test_parameters_keep_their_bytes() -> None:
    raw = b'{"type":"object","properties":{"x":{"const":1.50,"b":2,"a":1e2}}}'
    tool = b'{"type":"function","name":"f","parameters":' + raw + b"}"
    request = parse_response_request(b'{"model":"m","input":"hi","tools":[' + tool + b"]}")
    assert raw in request.body
    assert msgspec.json.decode(request.body)["tools"][0]["function"]["name"] == "f"


def test_tools_that_an_item_brings_are_offered_too() -> None:
    newer = {**OTHER, "description": "Newer."}
    added = {"type": "additional_tools", "role": "developer", "tools": [NAMESPACE, newer]}
    said = {"role": "user", "content": "what are additional_tools?"}
    chat = chat_of(tools=[FUNCTION, OTHER], input=[added, said])
    names = [tool["function"]["name"] for tool in chat["tools"]]
    assert names == ["f", "g", "ns__f", "ns__h", "ns__g"]
    assert chat["tools"][1]["function"]["description"] == "Newer."
    assert [message["role"] for message in chat["messages"]] == ["user"]
    wrong = {**added, "tools": [{"type": "function"}]}
    assert refused(input=[said, wrong]).param == "input[1].tools[0].name"
