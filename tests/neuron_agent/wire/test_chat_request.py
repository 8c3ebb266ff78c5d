"""Requests as clients send them, to requests the neuron can act on."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from neuron_agent.errors import BadRequest
from neuron_agent.wire.chat_request import ChatRequest, parse_chat_request

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}, "defer": 1}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def test_what_is_not_said_is_none() -> None:
    request = parse()
    assert (request.temperature, request.top_p, request.top_k) == (None, None, None)
    assert (request.seed, request.max_tokens) == (None, None)
    assert not request.is_streaming


def test_null_is_absence() -> None:
    fields = ("stream", "stop", "tools", "seed", "max_tokens", "stream_options", "tool_choice")
    silent, nulls = parse(), parse(**dict.fromkeys(fields))
    assert nulls.conversation.body_bytes > silent.conversation.body_bytes
    same_size = replace(nulls.conversation, body_bytes=silent.conversation.body_bytes)
    assert replace(nulls, conversation=same_size) == silent


def test_zero_temperature_is_not_absence() -> None:
    assert parse(temperature=0).temperature == 0


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_parts_are_joined_with_nothing_between() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "cache_control": {}}]
    request = parse(messages=[{"role": "user", "content": parts}])
    assert request.conversation.messages == [{"role": "user", "content": "a b"}]


def test_message_keeps_what_templates_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "index": 0}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "name": "bob"}
    thought = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    request = parse(messages=[USER, message, thought])
    assert request.conversation.messages[1] == {
        "role": "assistant",
        "name": "bob",
        "tool_calls": [{key: call[key] for key in ("id", "type", "function")}],
    }
    assert request.conversation.messages[2]["reasoning_content"] == "hm"


def test_tools_go_to_the_template_as_they_came() -> None:
    assert parse(tools=[TOOL]).conversation.tools == [TOOL]
    assert parse(tools=[TOOL], tool_choice="auto").conversation.tools == [TOOL]
    assert parse(tools=[TOOL], tool_choice="none").conversation.tools == []
    assert parse(tools=[]).conversation.tools == []


def test_named_tool_choice_is_refused_until_it_can_be_enforced() -> None:
    choice = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(BadRequest) as caught:
        parse(tools=[TOOL], tool_choice=choice)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tool_choice")


def test_effort_is_an_argument_of_the_template() -> None:
    assert parse(reasoning_effort="low").conversation.template_kwargs == {"reasoning_effort": "low"}


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 1, 2**63 - 1])
def test_any_64_bit_seed_becomes_one_the_channel_carries(seed: int) -> None:
    found = parse(seed=seed).seed
    assert found is not None
    assert 0 <= found < 2**63


def test_one_stop_string_may_stand_alone() -> None:
    assert parse(stop="END").stops == ("END",)
    assert parse(stop=["a", "b"]).stops == ("a", "b")
