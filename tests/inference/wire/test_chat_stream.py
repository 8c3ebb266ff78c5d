"""What a neuron encodes is what the gateway decodes, however the bytes are cut on their way."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire import events
from inference.wire.chat_stream import ChatStreamDecoder
from inference.wire.errors import NeuronAnswered
from inference.wire.sse import BadStream
from neuron_agent.protocol import Progress, Timing, Usage
from neuron_agent.wire import events as sent
from neuron_agent.wire.chat_response import ChatStreamEncoder
from neuron_agent.wire.stream_encoder import Framing, ResponseHead

USAGE = Usage(7, 3, cached_tokens=2, reasoning_tokens=1)
TIMING = Timing(1.0, 2.0, 3.0)
text = st.text(min_size=1, max_size=8)
deltas = st.lists(
    st.one_of(
        st.builds(sent.TextDelta, text),
        st.builds(sent.ReasoningDelta, text),
        st.builds(sent.ToolCallStarted, st.integers(0, 3), text, text),
        st.builds(sent.ToolArgumentsDelta, st.integers(0, 3), text),
    ),
    max_size=6,
)


def bytes_of(told: list[sent.ChatEvent]) -> bytes:
    framing = Framing(includes_usage=True, has_control_frames=True)
    encoder = ChatStreamEncoder(ResponseHead("chatcmpl-1", 1, "org/m"), framing)
    return b"".join(encoder.feed(event) for event in told)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


@given(deltas, st.lists(st.integers(0, 10_000), max_size=12))
def test_events_arrive_as_they_were_sent(told: list[sent.ChoiceEvent], places: list[int]) -> None:
    data = bytes_of(
        [
            sent.Waited("prefill", 1, 7),
            *told,
            sent.ChoiceFinished("stop"),
            sent.Finished("stop", USAGE, TIMING),
        ]
    )
    decoder = ChatStreamDecoder()
    got = [event for piece in cut(data, places) for event in decoder.feed(piece)]
    assert got[0] == Progress("prefill", 1, 7)
    assert got[-1] == events.Finished("stop", USAGE)
    assert [_of(event) for event in got[1:-1]] == [_of(event) for event in told]
    assert decoder.is_complete
    assert decoder.last_control.timing == TIMING


def _of(event: object) -> tuple[str, list[object]]:
    """A neuron's event and the gateway's are the same by name and values, but for the choice."""
    values = [
        getattr(event, name) for name in ("index", "id", "name", "text") if hasattr(event, name)
    ]
    return type(event).__name__, values


def test_a_prompts_length_comes_before_the_text_of_the_same_piece() -> None:
    chunk = {"choices": [{"delta": {"content": "hi"}}]}
    piece = b': cortex {"usage":{"prompt_tokens":7,"completion_tokens":0,"cached_tokens":2}}\n\n'
    piece += b"data: " + json.dumps(chunk).encode() + b"\n\n"
    assert ChatStreamDecoder().feed(piece) == [
        events.PromptRead(Usage(7, 0, 2)),
        events.TextDelta("hi"),
    ]


def test_the_stop_string_is_told_at_the_end() -> None:
    usage = '{"prompt_tokens":1,"completion_tokens":2}'
    control = f'{{"usage":{usage},"finish_reason":"stop","stop_sequence":"END"}}'
    (event,) = ChatStreamDecoder().feed(f": cortex {control}\n\ndata: [DONE]\n\n".encode())
    assert event == events.Finished("stop", Usage(1, 2), "END")


def test_nothing_comes_after_the_end() -> None:
    control = b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"finish_reason":"stop"}'
    ended = b": cortex " + control + b"\n\n"
    late = b'data: {"choices":[{"delta":{"content":"more"}}]}\n\n'
    decoder = ChatStreamDecoder()
    assert decoder.feed(ended + ended) == [events.Finished("stop", Usage(1, 2))]
    assert decoder.feed(late + ended) == []


def test_an_error_frame_is_raised_without_paths() -> None:
    error = {"message": "broke /srv/models/x.bin", "type": "api_error", "code": "device_fault"}
    with pytest.raises(NeuronAnswered) as raised:
        ChatStreamDecoder().feed(b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
    assert (raised.value.code, raised.value.message) == ("device_fault", "broke (path)")


DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize("data", [b"{", b'{"choices":[{}]}', b'{"choices":3}', b"\xff", DEEP])
def test_what_cannot_be_read_is_an_error(data: bytes) -> None:
    with pytest.raises(BadStream):
        ChatStreamDecoder().feed(b"data: " + data + b"\n\n")


def test_a_stream_that_breaks_off_is_not_complete() -> None:
    decoder = ChatStreamDecoder()
    decoder.feed(b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n')
    assert not decoder.is_complete
