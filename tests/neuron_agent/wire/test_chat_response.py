"""Laws of the encoder: whatever the events, the stream is one answer in OpenAI's shape."""

import json

from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import Unavailable
from neuron_agent.protocol import CONTROL_FRAME_PREFIX, Timing, Usage
from neuron_agent.wire.chat_response import ResponseHead, StreamEncoder, encode_completion
from neuron_agent.wire.events import ChatEvent, Finished, TextDelta, Waited
from tests.neuron_agent.front import data_frames, text_of

FINISHED = Finished("stop", Usage(7, 5, cached_tokens=3), Timing(1.0, 2.0, 3.0))
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1)
EVENTS = st.lists(
    st.one_of(
        st.builds(TextDelta, TEXTS),
        st.builds(Waited, st.sampled_from(["queued", "prefill", "decode"]), st.just(3)),
    ),
    max_size=10,
)
HEADS = st.builds(ResponseHead, st.just("chatcmpl-1"), st.just(123), st.text())


def encode(
    head: ResponseHead, events: list[ChatEvent], *, usage: bool, control: bool
) -> list[bytes]:
    encoder = StreamEncoder(head, includes_usage=usage, has_control_frames=control)
    data = b"".join(encoder.feed(event) for event in [*events, FINISHED])
    return data.removesuffix(b"\n\n").split(b"\n\n")


@given(HEADS, EVENTS, st.booleans(), st.booleans())
def test_stream_is_one_well_formed_answer(
    head: ResponseHead, events: list[ChatEvent], usage: bool, control: bool
) -> None:
    frames = encode(head, events, usage=usage, control=control)
    chunks = list(data_frames(frames))
    texts = [event.text for event in events if isinstance(event, TextDelta)]
    assert text_of(frames) == "".join(texts)
    assert frames[-1] == b"data: [DONE]"
    assert {(c["id"], c["created"], c["model"]) for c in chunks} == {(head.id, 123, head.model)}
    deltas = [choice for chunk in chunks for choice in chunk["choices"]]
    assert ["role" in choice["delta"] for choice in deltas].count(True) == 1
    assert "role" in deltas[0]["delta"]
    assert "content" in deltas[0]["delta"]
    assert [choice["finish_reason"] for choice in deltas] == [None] * (len(deltas) - 1) + ["stop"]
    assert ["usage" in chunk for chunk in chunks].count(True) == usage


@given(EVENTS)
def test_control_frames_are_comments_and_the_last_tells_the_usage(events: list[ChatEvent]) -> None:
    head = ResponseHead("i", 1, "m")
    frames = encode(head, events, usage=False, control=True)
    last = json.loads(frames[-2].removeprefix(CONTROL_FRAME_PREFIX))
    assert last["usage"]["cached_tokens"] == 3
    assert last["timing"] == {"queue_ms": 1.0, "prefill_ms": 2.0, "decode_ms": 3.0}
    assert last["finish_reason"] == "stop"
    plain = encode(head, events, usage=False, control=False)
    assert not any(frame.startswith(CONTROL_FRAME_PREFIX) for frame in plain)


def test_silence_is_kept_alive_now_and_then() -> None:
    encoder = StreamEncoder(
        ResponseHead("i", 1, "m"), includes_usage=False, has_control_frames=False
    )
    frames = [encoder.feed(Waited("queued")) for _ in range(6)]
    assert [bool(frame) for frame in frames] == [True, False, False] * 2


def test_stream_that_breaks_ends_with_an_error_and_no_end_mark() -> None:
    encoder = StreamEncoder(ResponseHead("i", 1, "m"), includes_usage=True, has_control_frames=True)
    encoder.feed(TextDelta("a"))
    frame = encoder.fail(Unavailable("the device failed", code="device_fault"))
    error = json.loads(frame.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "the device failed",
        "type": "api_error",
        "param": None,
        "code": "device_fault",
    }


@given(st.text(st.characters(codec="utf-8")))
def test_completion_carries_the_text_and_the_usage(text: str) -> None:
    body = json.loads(encode_completion(ResponseHead("i", 1, "m"), text, FINISHED))
    assert body["choices"][0]["message"]["content"] == text
    assert body["usage"]["total_tokens"] == 12
