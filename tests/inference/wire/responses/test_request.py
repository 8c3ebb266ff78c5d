"""What is read of a request, what it is refused for, and that a full one passes."""

import json
from typing import Any

import pytest

from inference.wire.errors import InvalidRequest
from inference.wire.responses import RESPONSES
from inference.wire.responses.answer import ResponseShape
from inference.wire.responses.request import parse_response_request

BASE: dict[str, Any] = {"model": "m", "input": "hi"}


def chat_of(**fields: Any) -> dict[str, Any]:
    body = json.dumps({**BASE, **fields}).encode()
    found: dict[str, Any] = json.loads(parse_response_request(body).body)
    return found


def test_the_least_request_is_a_streamed_chat_without_limits() -> None:
    assert chat_of() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }


@pytest.mark.parametrize(("stream", "expected"), [(True, True), (False, False), (None, False)])
def test_the_client_says_whether_it_wants_a_stream(stream: bool | None, expected: bool) -> None:
    request = parse_response_request(json.dumps({**BASE, "stream": stream}).encode())
    assert request.stream is expected
    assert request.model == "m"
    assert isinstance(request.shape, ResponseShape)


def test_sampling_has_a_chats_names() -> None:
    chat = chat_of(
        max_output_tokens=5,
        temperature=2,
        top_p=0,
        parallel_tool_calls=False,
        reasoning={"effort": "high", "summary": "auto"},
    )
    assert chat["max_tokens"] == 5
    assert (chat["temperature"], chat["top_p"]) == (2, 0)
    assert chat["parallel_tool_calls"] is False
    assert chat["reasoning_effort"] == "high"


def test_no_effort_is_no_thinking() -> None:
    chat = chat_of(reasoning={"effort": "none"})
    assert chat["reasoning_effort"] == "none"
    assert "reasoning_effort" not in chat_of(reasoning={"effort": None})
    assert "reasoning_effort" not in chat_of(reasoning=None)


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        (None, False),
        ({}, False),
        ({"effort": "low"}, False),
        ({"summary": None}, False),
        ({"summary": "none"}, False),
        ({"summary": "auto"}, True),
        ({"generate_summary": "concise"}, True),
    ],
)
def test_a_summary_is_shown_to_who_asks(reasoning: object, expected: bool) -> None:
    shape = parse_response_request(json.dumps({**BASE, "reasoning": reasoning}).encode()).shape
    assert isinstance(shape, ResponseShape)
    assert shape.summarizes_reasoning is expected


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True, "service_tier": "flex", "metadata": {"a": "b"}, "user": "me"},
        {"store": False, "truncation": "auto", "prompt_cache_key": "k", "safety_identifier": "s"},
        {"client_metadata": {"x": 1}, "prompt_cache_retention": "24h", "max_tool_calls": 3},
        {"include": ["message.output_text.logprobs", "something new"], "top_logprobs": 3},
        {"stream_options": {"include_obfuscation": False}, "something_new": [1, {}]},
        {"previous_response_id": None, "conversation": None, "prompt": None, "background": False},
        {
            "instructions": None, "tools": None, "tool_choice": None, "text": None,
            "reasoning": None, "include": None, "max_output_tokens": None, "temperature": None,
            "top_p": None, "metadata": None, "user": None, "truncation": None, "stream": None,
            "parallel_tool_calls": None, "background": None, "prompt_cache_key": None,
        },
    ],
)  # fmt: skip
def test_what_changes_nothing_is_ignored(fields: dict[str, Any]) -> None:
    assert chat_of(**fields) == chat_of()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"input": None}, "input"),
        ({"input": {}}, "input"),
        ({"input": []}, "input"),
        ({"instructions": 3}, "instructions"),
        ({"stream": "yes"}, "stream"),
        ({"tools": {}}, "tools"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 2**31}, "max_output_tokens"),
        ({"max_output_tokens": 1.5}, "max_output_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"include": "reasoning"}, "include"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        chat_of(**fields)
    assert raised.value.param == param


def test_input_is_needed() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_response_request(b'{"model":"m"}')
    assert raised.value.param == "input"


def test_the_operation_asks_a_neuron_for_a_chat() -> None:
    assert RESPONSES.path == "/v1/responses"
    assert RESPONSES.neuron_path == "/v1/chat/completions"
    assert RESPONSES.dialect.name == "openai"
    assert RESPONSES.parse_request is parse_response_request


CODEX: dict[str, Any] = {
    "model": "org/m",
    "instructions": "You are Codex, a coding agent.",
    "input": [
        {
            "type": "message",
            "id": "msg_4af1c6ab-e7e8-5916-b2ad-559ab51e9cc1",
            "role": "developer",
            "content": [{"type": "input_text", "text": "<permissions/>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "<environment_context/>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "List the files."}],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "I should look."}],
            "content": None,
            "encrypted_content": None,
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Looking."}],
            "phase": "commentary",
        },
        {
            "type": "function_call",
            "name": "shell",
            "arguments": '{"command":["ls"]}',
            "call_id": "call_1",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py\n"},
        {
            "type": "web_search_call",
            "status": "completed",
            "action": {"type": "search", "query": "x"},
        },
    ],
    "tools": [
        {
            "type": "function",
            "name": "shell",
            "description": "Runs a command.",
            "strict": False,
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "web_search", "external_web_access": True},
        {"type": "local_shell"},
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Sub-agents.",
            "tools": [{"type": "function", "name": "wait", "strict": False, "parameters": {}}],
        },
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199-key",
    "text": {"verbosity": "medium"},
    "client_metadata": {"x-codex-installation-id": "1"},
}


def test_what_codex_sends_is_a_chat() -> None:
    request = parse_response_request(json.dumps(CODEX).encode())
    chat = json.loads(request.body)
    assert [message["role"] for message in chat["messages"]] == [
        "system", "developer", "user", "user", "assistant", "tool",
    ]  # fmt: skip
    turn = chat["messages"][4]
    assert turn["content"] == "Looking."
    assert turn["reasoning_content"] == "I should look."
    assert turn["tool_calls"][0]["function"] == {"name": "shell", "arguments": '{"command":["ls"]}'}
    names = [tool["function"]["name"] for tool in chat["tools"]]
    assert names == ["shell", "apply_patch", "multi_agent_v1__wait"]
    assert chat["tool_choice"] == "auto"
    assert chat["reasoning_effort"] == "medium"
    assert "max_tokens" not in chat
    assert isinstance(request.shape, ResponseShape)
    assert (request.shape.summarizes_reasoning, request.shape.carries_reasoning) == (True, True)


def test_what_no_model_could_read_is_refused() -> None:
    body = {"model": "m", "input": [{}] * 100_001}
    with pytest.raises(InvalidRequest) as raised:
        parse_response_request(json.dumps(body).encode())
    assert raised.value.param == "input"
    body = {"model": "m", "input": "hi", "tools": [{"type": "x"}] * 10_001}
    with pytest.raises(InvalidRequest) as raised:
        parse_response_request(json.dumps(body).encode())
    assert raised.value.param == "tools"
