"""OpenAI's own client, as strict as it can be, follows a response from its first event to its last.

It does without a server: what it would receive is handed to it.
"""

import json
from typing import Any

import httpx2
import openai
import pytest

from inference.wire import errors, events
from inference.wire.dialect import AnswerHead
from inference.wire.responses.request import parse_response_request
from neuron_agent.protocol import Usage

HEAD = AnswerHead("0123456789abcdef01234567", 1_700_000_000)
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
SAID: list[events.ChatEvent] = [
    events.PromptRead(Usage(7, 0)),
    events.ReasoningDelta("hm"),
    events.ReasoningDelta("m"),
    events.TextDelta("so"),
    events.TextDelta(" be it"),
    events.ToolCallStarted(0, "call_1", "f"),
    events.ToolArgumentsDelta(0, '{"a"'),
    events.ToolArgumentsDelta(0, ":1}"),
    events.ToolCallStarted(1, "call_2", "f"),
    events.Finished("tool_calls", Usage(7, 3)),
]


class Told(httpx2.BaseTransport):
    """Answers each request as the gateway would if the model said what the test says."""

    def __init__(self, said: list[events.ChatEvent], error: errors.CortexError | None) -> None:
        self._said = said
        self._error = error

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        asked = parse_response_request(request.read())
        assert asked.shape is not None
        if not asked.stream:
            collector = asked.shape.whole(HEAD)
            for event in self._said:
                collector.feed(event)
            return httpx2.Response(200, content=collector.body(), headers=_kind("application/json"))
        stream = asked.shape.stream(HEAD)
        data = stream.open() + b": cortex-progress {}\n\n"
        data += b"".join(stream.feed(event) for event in self._said)
        if self._error is not None:
            data += stream.fail(self._error, "req-1")
        return httpx2.Response(200, content=data, headers=_kind("text/event-stream"))


def _kind(content_type: str) -> dict[str, str]:
    return {"content-type": content_type}


def client_told(
    said: list[events.ChatEvent], error: errors.CortexError | None = None
) -> openai.OpenAI:
    http = httpx2.Client(transport=Told(said, error))
    return openai.OpenAI(
        base_url="http://gateway/v1",
        api_key="none",
        http_client=http,
        _strict_response_validation=True,
    )


def ask(**fields: Any) -> dict[str, Any]:
    return {"model": "org/m", "input": "hi", "tools": [TOOL], **fields}


@pytest.mark.parametrize("summary", ["auto", None])
def test_a_stream_is_followed_to_its_end(summary: str | None) -> None:
    client = client_told(SAID)
    with client.responses.stream(**ask(reasoning={"summary": summary})) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert final.output_text == "so be it"
    assert [item.type for item in final.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    call = final.output[2]
    assert call.type == "function_call"
    assert (call.call_id, json.loads(call.arguments)) == ("call_1", {"a": 1})


def test_an_answer_at_once_is_the_same() -> None:
    client = client_told(SAID)
    *_, last = client.responses.create(**ask(), stream=True)
    answer = client.responses.create(**ask())
    assert answer.output_text == "so be it"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10
    assert last.type == "response.completed"
    assert last.response == answer


def test_what_the_client_received_it_can_send_back() -> None:
    client = client_told(SAID)
    answer = client.responses.create(**ask(include=["reasoning.encrypted_content"]))
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "ok"}
        for item in answer.output
        if item.type == "function_call"
    ]
    given = [{"role": "user", "content": "hi"}, *(item.to_dict() for item in answer.output)]
    body = json.dumps(ask(input=[*given, *results])).encode()
    _, turn, *tools = json.loads(parse_response_request(body).body)["messages"]
    assert (turn["reasoning_content"], turn["content"]) == ("hmm", "so be it")
    assert [call["id"] for call in turn["tool_calls"]] == ["call_1", "call_2"]
    assert [tool["tool_call_id"] for tool in tools] == ["call_1", "call_2"]


def test_a_failure_is_seen_with_its_code() -> None:
    error = errors.Saturated("Full.", retry_after_seconds=5)
    client = client_told(SAID[:4], error)
    with client.responses.stream(**ask()) as stream:
        last = [*stream][-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert last.response.error.code == "rate_limit_exceeded"


PATCH = "*** Begin Patch\n*** End Patch"
CUSTOM = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
EDITED: list[events.ChatEvent] = [
    events.PromptRead(Usage(7, 0)),
    events.ToolCallStarted(0, "call_1", "apply_patch"),
    *(events.ToolArgumentsDelta(0, piece) for piece in json.dumps({"input": PATCH})),
    events.ToolCallStarted(1, "call_2", "files__apply_patch"),
    events.ToolArgumentsDelta(1, PATCH),
    events.Finished("tool_calls", Usage(7, 3)),
]


def test_a_tool_that_takes_any_text_is_called_with_a_text() -> None:
    client = client_told(EDITED)
    inside = {"type": "namespace", "name": "files", "description": "x", "tools": [CUSTOM]}
    asked = ask(tools=[CUSTOM, inside], tool_choice={"type": "custom", "name": "apply_patch"})
    with client.responses.stream(**asked) as stream:
        told = [*stream]
        final = stream.get_final_response()
    deltas = [each for each in told if each.type == "response.custom_tool_call_input.delta"]
    assert len(deltas) == len(PATCH) + 1
    assert "".join(each.delta for each in deltas) == PATCH * 2
    assert final.tool_choice.to_dict() == asked["tool_choice"]
    for answer in (final, client.responses.create(**asked)):
        calls = [item for item in answer.output if item.type == "custom_tool_call"]
        assert [(call.call_id, call.namespace, call.name) for call in calls] == [
            ("call_1", None, "apply_patch"),
            ("call_2", "files", "apply_patch"),
        ]
        assert [call.input for call in calls] == [PATCH, PATCH]


def test_a_call_with_a_text_is_sent_back_as_the_model_made_it() -> None:
    answer = client_told(EDITED).responses.create(**ask(tools=[CUSTOM]))
    calls = [item.to_dict() for item in answer.output]
    result = {"type": "custom_tool_call_output", "call_id": "call_1", "output": "ok"}
    body = json.dumps(ask(input=[{"role": "user", "content": "hi"}, calls[0], result])).encode()
    _, turn, tool = json.loads(parse_response_request(body).body)["messages"]
    function = {
        "name": "apply_patch",
        "arguments": json.dumps({"input": PATCH}, separators=(",", ":")),
    }
    assert turn["tool_calls"] == [{"id": "call_1", "type": "function", "function": function}]
    assert (tool["tool_call_id"], tool["content"]) == ("call_1", "ok")
