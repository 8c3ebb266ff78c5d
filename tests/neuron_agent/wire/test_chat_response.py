"""Laws of the chat's encoder: whatever the events, the stream is one answer in OpenAI's shape."""

import json
from collections import defaultdict
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.protocol import Timing, Usage
from neuron_agent.wire.chat_response import ChatCollector, ChatStreamEncoder
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceFinished,
    Finished,
    ReasoningDelta,
    TextDelta,
    TokenChance,
    TokenLogprobs,
    Tokens,
    ToolArgumentsDelta,
    ToolCallStarted,
    Waited,
)
from neuron_agent.wire.stream_encoder import Framing, ResponseHead
from tests.neuron_agent.front import data_frames

FINISHED = Finished("stop", Usage(7, 5, cached_tokens=3), Timing(1.0, 2.0, 3.0))
NUM_CHOICES = 2
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1)
CHOICES = st.integers(0, NUM_CHOICES - 1)
CHANCES = st.builds(
    lambda text, value: TokenChance(text, text.encode(), value), TEXTS, st.floats(-50, 0)
)
LOGPROBS = st.lists(st.builds(TokenLogprobs, CHANCES, st.lists(CHANCES, max_size=2).map(tuple)))
HEADS = st.builds(ResponseHead, st.just("chatcmpl-1"), st.just(123), st.text())


@st.composite
def whole_answers(draw: st.DrawFn) -> list[ChatEvent]:
    """Events in an order that generation gives: calls start before their arguments come."""
    num_calls = dict.fromkeys(range(NUM_CHOICES), 0)
    events: list[ChatEvent] = []
    for _ in range(draw(st.integers(0, 12))):
        choice = draw(CHOICES)
        kind = draw(st.sampled_from(["text", "logprobs", "think", "call", "more", "wait", "ids"]))
        match kind:
            case "text":
                events.append(TextDelta(draw(TEXTS), choice))
            case "logprobs":
                events.append(TextDelta(draw(TEXTS), choice, tuple(draw(LOGPROBS))))
            case "think":
                events.append(ReasoningDelta(draw(TEXTS), choice))
            case "call":
                index = num_calls[choice]
                num_calls[choice] += 1
                events.append(ToolCallStarted(index, f"call_{index}", draw(TEXTS), choice))
            case "more" if num_calls[choice]:
                events.append(ToolArgumentsDelta(num_calls[choice] - 1, draw(TEXTS), choice))
            case "wait":
                events.append(Waited("prefill", 1, 2))
            case "ids":
                events.append(Tokens((1, 2), choice))
    ends = [ChoiceFinished("stop", choice) for choice in range(NUM_CHOICES)]
    return [*events, *ends, FINISHED]


def stream(head: ResponseHead, events: list[ChatEvent]) -> list[bytes]:
    encoder = ChatStreamEncoder(head, Framing())
    data = b"".join(encoder.feed(event) for event in events)
    return data.removesuffix(b"\n\n").split(b"\n\n")


def whole(head: ResponseHead, events: list[ChatEvent]) -> Any:
    collector = ChatCollector(head)
    bodies = [collector.feed(event) for event in events]
    assert bodies[:-1] == [None] * (len(events) - 1)
    assert bodies[-1] is not None
    return json.loads(bodies[-1])


def merge(frames: list[bytes]) -> dict[int, dict[str, Any]]:
    """Put a stream together as clients do."""
    choices: dict[int, dict[str, Any]] = defaultdict(
        lambda: {"content": "", "reasoning": "", "calls": {}, "reasons": [], "logprobs": []}
    )
    for chunk in data_frames(frames):
        for part in chunk["choices"]:
            choice, delta = choices[part["index"]], part["delta"]
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning_content") or ""
            choice["reasons"] += [part["finish_reason"]] if part["finish_reason"] else []
            choice["logprobs"] += (part["logprobs"] or {"content": []})["content"]
            for call in delta.get("tool_calls", []):
                known = choice["calls"].setdefault(call["index"], {"arguments": ""})
                known["arguments"] += call["function"].pop("arguments", "")
                known.update(call["function"])
                known.update({k: v for k, v in call.items() if k in ("id", "type")})
    return choices


@given(HEADS, whole_answers())
def test_stream_is_one_well_formed_answer(head: ResponseHead, events: list[ChatEvent]) -> None:
    frames = stream(head, events)
    chunks = list(data_frames(frames))
    assert frames[-1] == b"data: [DONE]"
    assert {(c["id"], c["created"], c["model"]) for c in chunks} == {(head.id, 123, head.model)}
    for index in range(NUM_CHOICES):
        deltas = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert ["role" in choice["delta"] for choice in deltas] == [True] + [False] * (
            len(deltas) - 1
        )
        reasons = [choice["finish_reason"] for choice in deltas]
        assert reasons == [None] * (len(deltas) - 1) + ["stop"]


@given(whole_answers())
def test_stream_put_together_is_the_whole_answer(events: list[ChatEvent]) -> None:
    head = ResponseHead("i", 1, "m")
    streamed, body = merge(stream(head, events)), whole(head, events)
    assert [choice["index"] for choice in body["choices"]] == list(range(NUM_CHOICES))
    for choice in body["choices"]:
        message, seen = choice["message"], streamed[choice["index"]]
        assert (message["content"] or "") == seen["content"]
        assert message.get("reasoning_content", "") == seen["reasoning"]
        assert (choice["logprobs"] or {"content": []})["content"] == seen["logprobs"]
        assert [choice["finish_reason"]] == seen["reasons"]
        calls = [
            {"id": call["id"], "type": "function", **call["function"]}
            for call in message.get("tool_calls", [])
        ]
        assert calls == [call for _, call in sorted(seen["calls"].items())]


def test_message_of_calls_alone_has_null_for_content() -> None:
    events: list[ChatEvent] = [
        ToolCallStarted(0, "call_1", "f"),
        ToolArgumentsDelta(0, "{}"),
        ChoiceFinished("tool_calls"),
        FINISHED,
    ]
    message = whole(ResponseHead("i", 1, "m"), events)["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]


def test_answer_of_nothing_is_empty_text() -> None:
    body = whole(ResponseHead("i", 1, "m"), [ChoiceFinished("stop"), FINISHED])
    assert body["choices"][0]["message"]["content"] == ""
    assert body["usage"]["total_tokens"] == 12
