"""What the streams of chat and text completions share: events in, server-sent frames out.

In a stream all chunks share id, created and model; finish_reason comes once for each choice; usage
in a chunk of its own, only when asked; control frames are comments, only for who asks. It is
sans-IO and knows neither tokens nor clocks, and not what a choice looks like.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from neuron_agent.errors import NeuronError
from neuron_agent.protocol import (
    CONTROL_FRAME_PREFIX,
    ControlFrame,
    ErrorBody,
    Progress,
    Usage,
)
from neuron_agent.wire import sse
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceEvent,
    Finished,
    PromptRead,
    Tokens,
    Waited,
)

KEEP_ALIVE_PERIOD_EVENTS = 3
"""One keep-alive for so many silent seconds, where the caller takes no control frames."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class Framing:
    """What a stream carries besides the answer."""

    includes_usage: bool = False
    has_control_frames: bool = False
    has_token_ids: bool = False

    @classmethod
    def asked_by(cls, frames_header: str | None, *, includes_usage: bool) -> "Framing":
        """Return what the header asks for: `1` for control frames, `ids` for token ids as well."""
        has_ids = frames_header == "ids"
        return cls(includes_usage, has_ids or frames_header == "1", has_ids)


class StreamEncoder(ABC):
    """Feed events, get frames."""

    object_name: ClassVar[str]

    def __init__(self, head: ResponseHead, framing: Framing) -> None:
        self._head = head
        self._framing = framing
        self._num_waited = 0

    def feed(self, event: ChatEvent) -> bytes:
        match event:
            case Waited():
                return self._waited(event)
            case PromptRead(usage):
                return (
                    _control(ControlFrame(usage=usage)) if self._framing.has_control_frames else b""
                )
            case Tokens():
                return self._token_ids(event)
            case Finished():
                return self._finished(event)
            case _:
                return self.encode(event)

    @abstractmethod
    def encode(self, event: ChoiceEvent) -> bytes:
        """Return the frames of an event of one choice."""

    def fail(self, error: NeuronError) -> bytes:
        """Return the frame that ends a stream which broke: no [DONE], it must not look whole."""
        return sse.data_frame(error_body(error))

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "object": self.object_name,
            "created": self._head.created,
            "model": self._head.model,
            "choices": choices,
        }

    def _waited(self, event: Waited) -> bytes:
        due = self._num_waited % KEEP_ALIVE_PERIOD_EVENTS == 0
        self._num_waited += 1
        if self._framing.has_control_frames and event.stage != "decode":
            return _control(ControlFrame(Progress(event.stage, event.done, event.total)))
        return sse.KEEP_ALIVE if due else b""

    def _token_ids(self, event: Tokens) -> bytes:
        if not self._framing.has_token_ids:
            return b""
        return _control(ControlFrame(ids=event.ids, choice=event.choice or None))

    def _finished(self, event: Finished) -> bytes:
        frames = b""
        if self._framing.includes_usage:
            frames += sse.data_frame({**self.chunk([]), "usage": usage_body(event.usage)})
        if self._framing.has_control_frames:
            frames += _control(
                ControlFrame(
                    usage=event.usage,
                    timing=event.timing,
                    finish_reason=event.reason,
                    stop_sequence=event.stop_sequence,
                )
            )
        return frames + sse.DONE


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


def _control(frame: ControlFrame) -> bytes:
    fields = {k: v for k, v in msgspec.to_builtins(frame).items() if v is not None}
    return sse.comment(CONTROL_FRAME_PREFIX, fields)
