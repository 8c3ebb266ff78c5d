"""Chat events to OpenAI's answers: a stream of chunks, or one completion.

In a stream all chunks share id, created and model; the first carries the role and the first text;
finish_reason comes once; usage in a chunk of its own, only when asked. It is sans-IO and knows
neither tokens nor clocks.
"""

from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from neuron_agent.errors import NeuronError
from neuron_agent.protocol import (
    CONTROL_FRAME_PREFIX,
    ControlFrame,
    ErrorBody,
    Progress,
    Timing,
    Usage,
)
from neuron_agent.wire import sse
from neuron_agent.wire.events import ChatEvent, Finished, TextDelta, Waited

KEEP_ALIVE_PERIOD_EVENTS = 3
"""One keep-alive for so many silent seconds, where the caller takes no control frames."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str


class StreamEncoder:
    """Feed events, get frames. The state is whether the first chunk went out."""

    def __init__(
        self, head: ResponseHead, *, includes_usage: bool, has_control_frames: bool
    ) -> None:
        self._head = head
        self._includes_usage = includes_usage
        self._has_control_frames = has_control_frames
        self._has_started = False
        self._num_waited = 0
        start, end = _chunk_template(head)
        self._text_start = start + b'{"content":'
        self._first_start = start + b'{"role":"assistant","content":'
        self._text_end = b"}" + end

    def feed(self, event: ChatEvent) -> bytes:
        match event:
            case TextDelta(text):
                return self._text(text)
            case Waited():
                return self._waited(event)
            case Finished():
                return self._finished(event)
            case _:
                assert_never(event)

    def fail(self, error: NeuronError) -> bytes:
        """Return the frame that ends a stream which broke: no [DONE], it must not look whole."""
        return sse.data_frame(error_body(error))

    def _text(self, text: str) -> bytes:
        start = self._text_start if self._has_started else self._first_start
        self._has_started = True
        return start + msgspec.json.encode(text) + self._text_end

    def _waited(self, event: Waited) -> bytes:
        due = self._num_waited % KEEP_ALIVE_PERIOD_EVENTS == 0
        self._num_waited += 1
        if self._has_control_frames and event.stage != "decode":
            return _control(ControlFrame(Progress(event.stage, event.done, event.total)))
        return sse.KEEP_ALIVE if due else b""

    def _finished(self, event: Finished) -> bytes:
        frames = b"" if self._has_started else self._text("")
        frames += sse.data_frame(_chunk(self._head, [_choice({}, event.reason)]))
        if self._includes_usage:
            frames += sse.data_frame({**_chunk(self._head, []), "usage": usage_body(event.usage)})
        if self._has_control_frames:
            frames += _control(_last_control_frame(event.reason, event.usage, event.timing))
        return frames + sse.DONE


def encode_completion(head: ResponseHead, text: str, finished: Finished) -> bytes:
    """Return the body of an answer that is not streamed."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": finished.reason,
    }
    return msgspec.json.encode(
        {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": [choice],
            "usage": usage_body(finished.usage),
        }
    )


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def error_body(error: NeuronError) -> dict[str, Any]:
    """Return OpenAI's error object; param is always there, what is None otherwise is left out."""
    detail = msgspec.to_builtins(ErrorBody(error.detail()))["error"]
    optional = ("hint", "needed_mb", "free_mb")
    kept = {k: v for k, v in detail.items() if k not in optional or v is not None}
    return {"error": kept}


def _chunk(head: ResponseHead, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "choices": choices,
    }


def _choice(delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _chunk_template(head: ResponseHead) -> tuple[bytes, bytes]:
    """Return a text chunk's bytes before and after its delta: the same in the whole stream."""
    mark = "\x00delta"  # the last one in the frame is ours, whatever the model is called
    frame = sse.data_frame(_chunk(head, [{**_choice({}, None), "delta": mark}]))
    start, _, end = frame.rpartition(msgspec.json.encode(mark))
    return start, end


def _control(frame: ControlFrame) -> bytes:
    fields = {k: v for k, v in msgspec.to_builtins(frame).items() if v is not None}
    return sse.comment(CONTROL_FRAME_PREFIX, fields)


def _last_control_frame(reason: str, usage: Usage, timing: Timing) -> ControlFrame:
    return ControlFrame(usage=usage, timing=timing, finish_reason=reason)
