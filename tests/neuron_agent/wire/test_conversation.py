"""Messages and tools as clients send them, to what templates are given."""

import json
from typing import Any

import pytest

from neuron_agent.errors import BadRequest
from neuron_agent.wire.conversation import (
    Conversation,
    ForcedCall,
    RenderInput,
    forced_call,
    render_input,
)
from neuron_agent.wire.json_body import decode

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}, "defer": 1}
OTHER = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}


def body(**fields: Any) -> tuple[Conversation, dict[str, Any]]:
    raw = json.loads(json.dumps({"model": "m", "messages": [USER], **fields}))
    return decode(raw, Conversation), raw


def rendered(**fields: Any) -> RenderInput:
    return render_input(*body(**fields))


def forced(**fields: Any) -> ForcedCall | None:
    return forced_call(body(**fields)[0])


def test_parts_are_joined_with_nothing_between() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "cache_control": {}}]
    found = rendered(messages=[{"role": "user", "content": parts}])
    assert found.messages == [{"role": "user", "content": "a b"}]


def test_message_keeps_what_templates_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "name": "bob"}
    thought = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    found = rendered(messages=[USER, message, thought])
    assert found.messages[1] == {
        "role": "assistant",
        "name": "bob",
        "tool_calls": [{key: call[key] for key in ("id", "type", "function")}],
    }
    assert found.messages[2]["reasoning_content"] == "hm"


def test_tools_go_to_the_template_as_they_came() -> None:
    assert rendered(tools=[TOOL]).tools == [TOOL]
    assert rendered(tools=[TOOL], tool_choice="auto").tools == [TOOL]
    assert rendered(tools=[TOOL], tool_choice="required").tools == [TOOL]
    assert rendered(tools=[TOOL], tool_choice="none").tools == []
    assert rendered(tools=[]).tools == []


def test_choice_of_a_tool_forces_a_call() -> None:
    named = {"type": "function", "function": {"name": "g"}}
    assert forced(tools=[TOOL, OTHER], tool_choice=named) == ForcedCall("g")
    assert forced(tools=[TOOL], tool_choice="required") == ForcedCall(None)
    for choice in (None, "auto", "none"):
        assert forced(tools=[TOOL], tool_choice=choice) is None


@pytest.mark.parametrize(
    "choice",
    [
        "maybe",
        {"type": "function"},
        {"type": "function", "function": {"name": "absent"}},
        {"type": "allowed_tools", "allowed_tools": {}},
        {},
    ],
)
def test_choice_that_cannot_be_met_is_refused_by_name(choice: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        forced(tools=[TOOL], tool_choice=choice)
    assert caught.value.param == "tool_choice"


def test_effort_is_an_argument_of_the_template() -> None:
    assert rendered(reasoning_effort="low").template_kwargs["reasoning_effort"] == "low"


@pytest.mark.parametrize(
    ("fields", "is_thinking"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, False),
        ({}, None),
    ],
)
def test_an_effort_turns_thinking_on_or_off_unless_the_client_did(
    fields: dict[str, Any], is_thinking: bool | None
) -> None:
    assert rendered(**fields).template_kwargs.get("enable_thinking") is is_thinking


def call(call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def result(call_id: str | None, content: str) -> dict[str, Any]:
    named = {} if call_id is None else {"tool_call_id": call_id}
    return {"role": "tool", "content": content, **named}


def test_results_of_parallel_calls_come_in_the_order_of_the_calls() -> None:
    asked = {"role": "user", "content": "?"}
    told = [
        {"role": "assistant", "tool_calls": [call("a"), call("b"), call("c")]},
        result("c", "of c"),
        result("unknown", "of nobody"),
        result("a", "of a"),
        result("b", "of b"),
        {"role": "assistant", "tool_calls": [call("b"), call("a")]},
        result("a", "second a"),
        result("b", "second b"),
        asked,
        result("b", "stray b"),
        result("a", "stray a"),
    ]
    contents = [each.get("content") for each in rendered(messages=[asked, *told]).messages]
    assert [each for each in contents if each not in (None, "?")] == [
        *("of a", "of b", "of c", "of nobody", "second b", "second a", "stray b", "stray a")
    ]


def test_results_without_ids_stay_as_they_came() -> None:
    calls = {"role": "assistant", "tool_calls": [call("a"), call("b")]}
    messages = [calls, result(None, "1"), result(None, "2")]
    contents = [each.get("content") for each in rendered(messages=messages).messages]
    assert contents[1:] == ["1", "2"]
