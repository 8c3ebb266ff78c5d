"""Anthropic's own client, as strict as it can be: its helpers find here what they look for.

It does without a server: what it would receive is handed to it.
"""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic import beta_tool

from inference.wire.anthropic.dialect import DIALECT
from inference.wire.anthropic.request import parse_messages
from inference.wire.errors import InvalidRequest
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
from tests.inference.wire.anthropic.events import HEAD

USAGE = Usage(10, 3)
QUESTION = {"role": "user", "content": "hi"}
CALLS: list[ChatEvent] = [
    PromptRead(Usage(10, 0)),
    ReasoningDelta("hm"),
    TextDelta("I look."),
    ToolCallStarted(0, "call_1", "weather"),
    ToolArgumentsDelta(0, '{"city":'),
    ToolArgumentsDelta(0, '"Köln"}'),
    ToolCallStarted(1, "call_2", "weather"),
    ToolArgumentsDelta(1, '{"city":"Bonn"}'),
    Finished("tool_calls", USAGE),
]
SAID: list[ChatEvent] = [PromptRead(Usage(10, 0)), TextDelta("Rain."), Finished("stop", USAGE)]


class Gateway(httpx2.BaseTransport):
    """Answers the requests that make sense with one list of events after the other."""

    def __init__(self) -> None:
        self.answers = [CALLS, SAID]
        self.asked: list[dict[str, Any]] = []
        """What neurons were asked."""
        self.refused: list[str | None] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            asked = parse_messages(request.read())
        except InvalidRequest as error:
            self.refused.append(error.param)
            answer = DIALECT.error_answer(error, "req-1")
            return httpx2.Response(answer.status, headers=list(answer.headers), content=answer.body)
        assert asked.shape is not None
        self.asked.append(json.loads(asked.body))
        events = self.answers.pop(0)
        if asked.stream:
            encoder = asked.shape.stream(HEAD)
            frames = encoder.open() + b"".join(encoder.feed(event) for event in events)
            return httpx2.Response(200, headers=_kind("text/event-stream"), content=frames)
        collector = asked.shape.whole(HEAD)
        for event in events:
            collector.feed(event)
        return httpx2.Response(200, headers=_kind("application/json"), content=collector.body())


def _kind(content_type: str) -> dict[str, str]:
    return {"content-type": content_type}


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        api_key="none",
        base_url="http://gateway",
        http_client=httpx2.Client(transport=gateway),
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


@beta_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"rain in {city}"


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_runner_sends_the_whole_conversation_each_time(
    gateway: Gateway, client: anthropic.Anthropic, streams: bool
) -> None:
    runner: Any = client.beta.messages.tool_runner(
        model="m", max_tokens=99, tools=[weather], messages=[QUESTION], stream=streams
    )
    told = [turn.get_final_message() if streams else turn for turn in runner]
    assert [message.stop_reason for message in told] == ["tool_use", "end_turn"]
    assert gateway.refused == ["thread"]
    question, turn, *results = gateway.asked[-1]["messages"]
    assert (question["role"], turn["content"]) == ("user", "I look.")
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        ("call_1", "rain in Köln"),
        ("call_2", "rain in Bonn"),
    ]
    assert all(asked["tools"] for asked in gateway.asked)


def test_who_did_not_ask_for_thinking_finds_text_first(client: anthropic.Anthropic) -> None:
    message = client.messages.create(model="m", max_tokens=99, messages=[QUESTION])
    assert message.content[0].type == "text"
    assert message.content[0].text == "I look."


def test_thinking_is_sent_back_as_it_came(gateway: Gateway, client: anthropic.Anthropic) -> None:
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    asked: dict[str, Any] = {"model": "m", "max_tokens": 9, "thinking": thinking}
    message = client.beta.messages.create(**asked, messages=[QUESTION])
    assert message.content[0].type == "thinking"
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "ok"}
    turns = [QUESTION, message.to_param(), {"role": "user", "content": [result]}]
    client.beta.messages.create(**asked, messages=turns)
    assert gateway.asked[-1]["messages"][1]["reasoning_content"] == "hm"


def test_edits_of_the_context_are_told_of(client: anthropic.Anthropic) -> None:
    edits: Any = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    asked: dict[str, Any] = {"model": "m", "max_tokens": 9, "context_management": edits}
    with client.beta.messages.stream(**asked, messages=[QUESTION]) as stream:
        streamed = stream.get_final_message()
    whole = client.beta.messages.create(**asked, messages=[QUESTION])
    for message in (streamed, whole):
        assert message.context_management is not None
        assert message.context_management.applied_edits == []


KINDS_OF_SDK = re.compile(r'Literal\["(\w+)"\]\]')
ASSISTANTS = {"thinking", "redacted_thinking", "tool_use", "compaction", "text"}
BLOCKS = {
    "text": {"text": "x"},
    "image": {"source": {"type": "url", "url": "https://x/y.png"}},
    "document": {"source": {"type": "text", "media_type": "text/plain", "data": "x"}},
    "search_result": {"source": "x", "title": "x", "content": [{"type": "text", "text": "x"}]},
    "thinking": {"thinking": "x", "signature": "x"},
    "tool_use": {"id": "toolu_1", "name": "f", "input": {}},
    "tool_result": {"tool_use_id": "toolu_1"},
    "compaction": {"content": "x"},
}


def kinds_of_blocks() -> list[str]:
    """Return the types of all content blocks that the installed SDK can send."""
    types = files("anthropic.types.beta")
    union = types.joinpath("beta_content_block_param.py").read_text()
    found: set[str] = set()
    for module in re.findall(r"from \.(beta_\w+_param) import", union):
        source = types.joinpath(f"{module}.py").read_text()
        found.update(KINDS_OF_SDK.findall(source.split("type: Required[")[-1][:60]))
    return sorted(found)


def test_the_sdk_has_blocks_to_send() -> None:
    assert {*BLOCKS, "server_tool_use", "mcp_tool_result"} <= set(kinds_of_blocks())


@pytest.mark.parametrize("kind", kinds_of_blocks())
def test_every_block_that_the_sdk_can_send_is_taken(kind: str) -> None:
    block = {"type": kind, **BLOCKS.get(kind, {})}
    role = "assistant" if kind in ASSISTANTS else "user"
    messages = [QUESTION, {"role": role, "content": [block]}, QUESTION]
    body = {"model": "m", "max_tokens": 5, "messages": messages}
    assert parse_messages(json.dumps(body).encode()).model == "m"
