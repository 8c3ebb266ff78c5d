"""A stream says what the model said, however it is cut, and is well-formed whatever was said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.anthropic.answer import MessageShape
from inference.wire.anthropic.facts import Thoughts
from inference.wire.anthropic.stream import MessageStream
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
from tests.inference.wire.anthropic.events import HEAD, StreamReader, answers

USAGE = Usage(10, 3, 4)


def stream(thoughts: Thoughts = Thoughts.SHOWN) -> MessageStream:
    return MessageShape("claude-x", thoughts).stream(HEAD)


def frames_of(events: list[ChatEvent], encoder: MessageStream | None = None) -> bytes:
    encoder = encoder or stream()
    return encoder.open() + b"".join(encoder.feed(event) for event in events)


def read(frames: bytes) -> list[ChatEvent]:
    reader = StreamReader()
    reader.feed(frames)
    reader.check_complete()
    return reader.events


def types_of(frames: bytes) -> list[str]:
    return [line[7:].decode() for line in frames.split(b"\n") if line.startswith(b"event: ")]


@given(answers(), st.data())
def test_what_is_read_is_what_was_fed_wherever_it_was_cut(
    events: list[ChatEvent], data: st.DataObject
) -> None:
    frames = frames_of(events)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(frames)), max_size=8)))
    reader = StreamReader()
    for start, end in zip([0, *cuts], [*cuts, len(frames)], strict=True):
        reader.feed(frames[start:end])
    reader.check_complete()
    assert reader.events == events
    assert reader.num_pings == 1


@given(answers())
def test_thinking_that_is_not_to_be_shown_is_signed_and_empty(events: list[ChatEvent]) -> None:
    hidden = read(frames_of(events, stream(Thoughts.OMITTED)))
    assert hidden == [event for event in events if not isinstance(event, ReasoningDelta)]


@given(answers())
def test_of_thinking_that_nobody_asked_for_there_is_nothing(events: list[ChatEvent]) -> None:
    said = [event for event in events if not isinstance(event, ReasoningDelta)]
    assert frames_of(events, stream(Thoughts.UNASKED)) == frames_of(said)


@given(answers())
def test_empty_deltas_say_nothing(events: list[ChatEvent]) -> None:
    padded = [part for event in events[1:-1] for part in (TextDelta(""), ReasoningDelta(""), event)]
    assert frames_of([events[0], *padded, events[-1]]) == frames_of(events)


def test_an_answer_has_its_events_in_order() -> None:
    events: list[ChatEvent] = [
        PromptRead(USAGE),
        ReasoningDelta("hm"),
        TextDelta("a"),
        TextDelta("b"),
        ToolCallStarted(0, "call_1", "f"),
        ToolArgumentsDelta(0, "{}"),
        Finished("tool_calls", USAGE),
    ]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert types_of(frames_of(events)) == [
        "ping",
        "message_start",
        *("content_block_start", "content_block_delta", "content_block_delta"),
        "content_block_stop",
        *("content_block_start", "content_block_delta", "content_block_delta"),
        "content_block_stop",
        *block,
        "message_delta",
        "message_stop",
    ]


def test_an_empty_answer_is_whole() -> None:
    expected = ["ping", "message_start", "message_delta", "message_stop"]
    assert types_of(frames_of([PromptRead(USAGE), Finished("stop", USAGE)])) == expected
    assert types_of(frames_of([Finished("stop", USAGE)])) == expected


def test_a_neuron_that_does_not_say_how_long_the_prompt_is_begins_a_message_too() -> None:
    events = read(frames_of([TextDelta("x"), PromptRead(USAGE), Finished("stop", USAGE)]))
    assert events == [PromptRead(Usage(0, 0)), TextDelta("x"), Finished("stop", USAGE)]


def test_a_call_without_arguments_is_a_block_without_deltas() -> None:
    calls = [ToolCallStarted(0, "call_1", "f"), ToolCallStarted(1, "call_2", "f")]
    events = [PromptRead(USAGE), *calls, Finished("tool_calls", USAGE)]
    assert read(frames_of(events)) == events


@pytest.mark.parametrize("before", [[], [PromptRead(USAGE)], [TextDelta("x")]])
def test_arguments_of_no_call_are_refused(before: list[ChatEvent]) -> None:
    with pytest.raises(UpstreamError):
        frames_of([*before, ToolArgumentsDelta(0, "{}")])


@pytest.mark.parametrize("before", [[], [PromptRead(USAGE)], [TextDelta("x")]])
def test_a_broken_stream_ends_with_an_error_and_nothing_else(before: list[ChatEvent]) -> None:
    encoder = stream()
    frames_of(before, encoder)
    frame = encoder.fail(UpstreamError("it broke"), "req-1")
    event, data, *rest = frame.split(b"\n")
    assert (event, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": "api_error", "message": "it broke"},
        "request_id": "req-1",
    }
