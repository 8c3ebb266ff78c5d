"""What a stream carries besides the answer, and only to whom it may concern."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import Unavailable
from neuron_agent.protocol import CONTROL_FRAME_PREFIX, ControlFrame, Timing, Usage
from neuron_agent.wire import sse
from neuron_agent.wire.chat_response import ChatStreamEncoder
from neuron_agent.wire.completion_response import CompletionStreamEncoder
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceFinished,
    Finished,
    PromptRead,
    TextDelta,
    Tokens,
    Waited,
)
from neuron_agent.wire.stream_encoder import Framing, ResponseHead, StreamEncoder
from tests.neuron_agent.front import data_frames

HEAD = ResponseHead("i", 1, "m")
FINISHED = Finished("stop", Usage(7, 5, cached_tokens=3), Timing(1.0, 2.0, 3.0))
ENCODERS = [ChatStreamEncoder, CompletionStreamEncoder]
EVENTS = st.lists(
    st.one_of(
        st.builds(TextDelta, st.text(st.characters(codec="utf-8"), min_size=1)),
        st.builds(Waited, st.sampled_from(["queued", "prefill", "decode"]), st.just(3)),
        st.just(Tokens((4, 5))),
        st.just(PromptRead(Usage(7, 0, cached_tokens=3))),
    ),
    max_size=10,
)


def encode(encoder: StreamEncoder, events: list[ChatEvent]) -> list[bytes]:
    data = b"".join(map(encoder.feed, [*events, ChoiceFinished("stop"), FINISHED]))
    return data.removesuffix(b"\n\n").split(b"\n\n")


@pytest.mark.parametrize("encoder", ENCODERS)
@given(events=EVENTS, usage=st.booleans())
def test_usage_comes_once_in_its_own_chunk_when_asked(
    encoder: type[StreamEncoder], events: list[ChatEvent], usage: bool
) -> None:
    frames = encode(encoder(HEAD, Framing(includes_usage=usage)), events)
    chunks = list(data_frames(frames))
    told = [chunk for chunk in chunks if "usage" in chunk]
    assert [chunk["choices"] for chunk in told] == [[]] * usage
    assert frames[-1] == b"data: [DONE]"


@pytest.mark.parametrize("encoder", ENCODERS)
@given(events=EVENTS)
def test_control_frames_are_comments_and_the_last_tells_the_usage(
    encoder: type[StreamEncoder], events: list[ChatEvent]
) -> None:
    frames = encode(encoder(HEAD, Framing.asked_by("1", includes_usage=False)), events)
    last = json.loads(frames[-2].removeprefix(CONTROL_FRAME_PREFIX))
    assert last["usage"]["cached_tokens"] == 3
    assert last["timing"] == {"queue_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0}
    assert last["finish_reason"] == "stop"
    assert not any(b'"ids"' in frame for frame in frames if frame.startswith(b":"))
    plain = encode(encoder(HEAD, Framing.asked_by(None, includes_usage=False)), events)
    assert not any(frame.startswith(CONTROL_FRAME_PREFIX) for frame in plain)


def test_prompt_that_is_read_is_told_to_who_asks_for_control_frames() -> None:
    event = PromptRead(Usage(7, 0, cached_tokens=3))
    frame = ChatStreamEncoder(HEAD, Framing.asked_by("1", includes_usage=False)).feed(event)
    told = msgspec.json.decode(frame.removeprefix(CONTROL_FRAME_PREFIX), type=ControlFrame)
    assert told == ControlFrame(usage=event.usage)
    assert ChatStreamEncoder(HEAD, Framing(includes_usage=True)).feed(event) == b""


@pytest.mark.parametrize("stop_sequence", ["END", None])
def test_stop_string_that_ended_the_answer_is_in_the_last_control_frame(
    stop_sequence: str | None,
) -> None:
    encoder = ChatStreamEncoder(HEAD, Framing.asked_by("1", includes_usage=False))
    frame = encoder.feed(Finished("stop", FINISHED.usage, FINISHED.timing, stop_sequence))
    told = json.loads(frame.removeprefix(CONTROL_FRAME_PREFIX).removesuffix(sse.DONE))
    assert told.get("stop_sequence") == stop_sequence


def test_token_ids_stand_before_their_frame_for_who_asks_for_them() -> None:
    events: list[ChatEvent] = [Tokens((4, 5)), TextDelta("a"), Tokens((6,), 1), TextDelta("b", 1)]
    encoder = ChatStreamEncoder(HEAD, Framing.asked_by("ids", includes_usage=False))
    frames = encode(encoder, events)
    assert frames[0] == b': cortex {"ids":[4,5]}'
    assert b'"content":"a"' in frames[1]
    assert frames[2] == b': cortex {"ids":[6],"choice":1}'
    assert b'"content":"b"' in frames[3]


def test_silence_is_kept_alive_now_and_then() -> None:
    encoder = ChatStreamEncoder(HEAD, Framing())
    frames = [encoder.feed(Waited("queued")) for _ in range(6)]
    assert [bool(frame) for frame in frames] == [True, False, False] * 2


def test_stream_that_breaks_ends_with_an_error_and_no_end_mark() -> None:
    encoder = ChatStreamEncoder(HEAD, Framing(includes_usage=True))
    encoder.feed(TextDelta("a"))
    frame = encoder.fail(Unavailable("the device failed", code="device_fault"))
    error = json.loads(frame.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "the device failed",
        "type": "api_error",
        "param": None,
        "code": "device_fault",
    }
