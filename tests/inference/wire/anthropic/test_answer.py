"""An answer that comes at once has the content of its stream, and the anthropic SDK reads both."""

import json
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from hypothesis import given

from inference.wire import anthropic as dialect
from inference.wire.anthropic.answer import MessageShape
from inference.wire.anthropic.facts import Thoughts
from inference.wire.errors import UpstreamError
from inference.wire.events import (
    ChatEvent,
    Finished,
    PromptRead,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallStarted,
)
from neuron_agent.protocol import Usage
from tests.inference.wire.anthropic.events import HEAD, answers, usage_of

SHAPE = MessageShape("claude-x", Thoughts.SHOWN)
USAGE = Usage(10, 3, 4, 1)
ANSWER: list[ChatEvent] = [
    PromptRead(Usage(10, 0, 4)),
    ReasoningDelta("Let me "),
    ReasoningDelta("see."),
    TextDelta('It is "so"\n'),
    ToolCallStarted(0, "call_1", "get_weather"),
    ToolArgumentsDelta(0, '{"city": "K'),
    ToolArgumentsDelta(0, 'öln"}'),
    ToolCallStarted(1, "call_2", "now"),
    Finished("tool_calls", USAGE),
]


def whole(events: list[ChatEvent], shape: MessageShape = SHAPE) -> dict[str, Any]:
    collector = shape.whole(HEAD)
    for event in events:
        collector.feed(event)
    message = json.loads(collector.body())
    assert isinstance(message, dict)
    return message


def streamed(events: list[ChatEvent], shape: MessageShape = SHAPE) -> bytes:
    encoder = shape.stream(HEAD)
    return encoder.open() + b"".join(encoder.feed(event) for event in events)


def accumulated(frames: bytes) -> dict[str, Any]:
    """Put a message together from its stream as a client does."""
    message: dict[str, Any] = {}
    for frame in frames.split(b"\n\n")[:-1]:
        payload = json.loads(frame.split(b"\ndata: ")[1])
        match payload:
            case {"type": "message_start"}:
                message = payload["message"]
            case {"type": "content_block_start", "content_block": block}:
                message["content"].append({**block, "json": ""})
            case {"type": "content_block_delta", "delta": delta}:
                block, kind = message["content"][-1], delta.pop("type")
                if kind == "input_json_delta":
                    delta = {"json": delta["partial_json"]}
                for name, text in delta.items():
                    block[name] += text
            case {"type": "message_delta"}:
                message |= payload["delta"]
                message["usage"] |= payload["usage"]
                if "context_management" in payload:
                    message["context_management"] = payload["context_management"]
    for block in message["content"]:
        arguments = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(arguments or "{}")
    return message


@given(answers())
def test_a_whole_answer_is_its_stream_put_together(events: list[ChatEvent]) -> None:
    for thoughts in Thoughts:
        shape = MessageShape("m", thoughts)
        assert whole(events, shape) == accumulated(streamed(events, shape))


def test_an_answer_has_every_part() -> None:
    message = whole(ANSWER)
    signature = message["content"][0].pop("signature")
    assert isinstance(signature, str)
    assert signature
    assert usage_of(message.pop("usage")) == USAGE
    assert message == {
        "id": "msg_" + HEAD.unique,
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [
            {"type": "thinking", "thinking": "Let me see."},
            {"type": "text", "text": 'It is "so"\n'},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Köln"}},
            {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "stop_details": None,
    }


@given(answers())
def test_of_an_answer_that_nobody_wants_only_the_prompt_is_told(events: list[ChatEvent]) -> None:
    shape = MessageShape("m", Thoughts.SHOWN, is_silent=True)
    message = whole(events, shape)
    told = usage_of(message["usage"])
    last = events[-1]
    assert isinstance(last, Finished)
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert told == Usage(last.usage.prompt_tokens, 0, last.usage.cached_tokens)
    assert message == accumulated(streamed(events, shape))


def test_a_client_that_would_edit_the_context_is_told_that_nothing_was() -> None:
    shape = MessageShape("m", Thoughts.SHOWN, has_edits=True)
    message = whole(ANSWER, shape)
    assert message["context_management"] == {"applied_edits": []}
    assert message == accumulated(streamed(ANSWER, shape))


@pytest.mark.parametrize("arguments", ['{"a": 1', "[]", "7", '{"a": NaN}', "", "[" * 5000])
def test_arguments_that_are_no_object_are_none(arguments: str) -> None:
    call = ToolCallStarted(0, "call_1", "f")
    message = whole([call, ToolArgumentsDelta(0, arguments), Finished("length", USAGE)])
    assert message["content"][0]["input"] == {}


def test_arguments_of_no_call_are_refused() -> None:
    with pytest.raises(UpstreamError):
        whole([TextDelta("x"), ToolArgumentsDelta(0, "{}")])


def answer_with_sdk_transport(request: httpx2.Request) -> httpx2.Response:
    asked = dialect.parse_messages(request.content)
    assert asked.shape is not None
    if not asked.stream:
        body = json.dumps(whole(ANSWER)).encode()
        return httpx2.Response(200, headers={"content-type": "application/json"}, content=body)
    frames = streamed(ANSWER) + dialect.DIALECT.keep_alive({"stage": "decode"})
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=frames)


def test_the_sdk_reads_both_forms_strictly_and_sends_them_back() -> None:
    transport = httpx2.MockTransport(answer_with_sdk_transport)
    with Anthropic(
        api_key="none",
        base_url="http://gateway",
        http_client=httpx2.Client(transport=transport),
        _strict_response_validation=True,
    ) as client:
        question = {"role": "user", "content": "hi"}
        asked: dict[str, Any] = {"model": "claude-x", "max_tokens": 9, "messages": [question]}
        message = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            final = stream.get_final_message()
        assert final.model_dump(exclude_none=True) == message.model_dump(exclude_none=True)
        assert message.content[2].to_dict()["input"] == {"city": "Köln"}
        asked["messages"] += [message.to_param(), question]
        assert client.messages.create(**asked).id == message.id
