"""A response object, at once or event by event: OpenAI's Responses as their clients expect them.

The answer that comes at once is the object a stream ends with. State is which item is open: at
most one, and all before it are complete. It knows no HTTP, no clock and no model.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec

from inference.wire.dialect import AnswerHead
from inference.wire.errors import CortexError, UpstreamError
from inference.wire.events import (
    ChatEvent,
    Finished,
    PromptRead,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallStarted,
)
from inference.wire.responses.failure import failure_of
from inference.wire.responses.items import (
    CustomToolCall,
    FunctionCall,
    Item,
    Message,
    Reasoning,
    SummarizedReasoning,
)
from neuron_agent.protocol import Usage

_encode = msgspec.json.Encoder().encode
_ENDS = {
    "length": ("incomplete", {"reason": "max_output_tokens"}),
    "content_filter": ("incomplete", {"reason": "content_filter"}),
}
_COMPLETED = ("completed", None)


@dataclass(frozen=True, slots=True)
class ResponseShape:
    """What a response repeats of its request, and how it shows reasoning."""

    repeated: Mapping[str, Any]
    """Fields of the request that stand in the response as well, `model` among them."""
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Names that a model may call -> the namespace and the name that the client knows."""
    customs: Set[str] = frozenset()
    """Names that a model calls with a text."""
    summarizes_reasoning: bool = False
    carries_reasoning: bool = False

    def stream(self, head: AnswerHead) -> "ResponseStream":
        return ResponseStream(self, head)

    def whole(self, head: AnswerHead) -> "WholeResponse":
        return WholeResponse(self, head)


class _Draft:
    """The response so far: items that are complete, and the one that grows."""

    def __init__(self, shape: ResponseShape, head: AnswerHead) -> None:
        self._shape = shape
        self._head = head
        # Instructions and tools are most of it, and in each of three events or more. What passes
        # unread may have line breaks between its values, which would end an event's data.
        self._repeated = _encode(shape.repeated)[1:].translate(None, b"\r\n")
        self.done: list[dict[str, Any]] = []
        self.item: Item | None = None

    @property
    def index(self) -> int:
        """Of the open item, or the one that comes next."""
        return len(self.done)

    def begin(self, event: TextDelta | ReasoningDelta | ToolCallStarted) -> Item:
        """Open the item that an event belongs to; none may be open."""
        unique = f"{self._head.unique}{self.index:02x}"
        match event:
            case TextDelta():
                self.item = Message(f"msg_{unique}")
            case ReasoningDelta() if self._shape.summarizes_reasoning:
                self.item = SummarizedReasoning(f"rs_{unique}", self._shape.carries_reasoning)
            case ReasoningDelta():
                self.item = Reasoning(f"rs_{unique}", self._shape.carries_reasoning)
            case ToolCallStarted(_, call_id, name):
                namespace, own_name = self._shape.namespaces.get(name, (None, name))
                if name in self._shape.customs:
                    self.item = CustomToolCall(f"ctc_{unique}", call_id, own_name, namespace)
                else:
                    self.item = FunctionCall(f"fc_{unique}", call_id, own_name, namespace)
            case _:
                assert_never(event)
        return self.item

    def grow(self, text: str) -> str:
        """Add a piece to the open item, and return what the client is told of it."""
        item = self.item
        assert item is not None
        if isinstance(item, CustomToolCall):
            text = item.reader.feed(text)
        item.pieces.append(text)
        return text

    def complete(self) -> str:
        """Return what the client was not yet told of the open item: nothing more will come."""
        if not isinstance(self.item, CustomToolCall):
            return ""
        self.item.pieces.append(self.item.reader.finish())
        return self.item.pieces[-1]

    def end_item(self, status: str) -> dict[str, Any] | None:
        """Close the open item, if any, and return it as it stands in the answer."""
        if self.item is None:
            return None
        self.complete()
        self.done.append(self.item.shown(status))
        self.item = None
        return self.done[-1]

    def response(self, status: str, **told: Any) -> msgspec.Raw:
        """Return the response object as it is now."""
        fields = {
            "id": f"resp_{self._head.unique}",
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "output": self.done,
            "usage": None,
            **told,
        }
        return msgspec.Raw(_encode(fields)[:-1] + b"," + self._repeated)


class ResponseStream:
    """Each event has the next number, each item the next index; nothing is held back."""

    def __init__(self, shape: ResponseShape, head: AnswerHead) -> None:
        self._draft = _Draft(shape, head)
        self._num_events = 0
        self._grown_by: type | None = None
        self._delta_head = b""

    def open(self) -> bytes:
        begun = self._draft.response("in_progress")
        return self._event({"type": "response.created", "response": begun}) + self.idle()

    def idle(self) -> bytes:
        """Return an event that says no more than that the request is alive.

        Codex gives up after five minutes without an event, and a comment is none.
        """
        begun = self._draft.response("in_progress", output=[])
        return self._event({"type": "response.in_progress", "response": begun})

    def feed(self, event: ChatEvent) -> bytes:
        """Raises UpstreamError for arguments of a call that never started."""
        match event:
            case TextDelta(text) | ReasoningDelta(text):
                frames = b"" if self._grown_by is type(event) else self._start(event)
                return frames + self._delta(text)
            case ToolArgumentsDelta(_, text):
                if self._grown_by is not ToolArgumentsDelta:
                    raise UpstreamError("The neuron's answer makes no sense.")
                return self._delta(text)
            case ToolCallStarted():
                return self._start(event)
            case Finished(reason, usage):
                return self._finish(reason, usage)
            case PromptRead():
                return b""
            case _:
                assert_never(event)

    def fail(self, error: CortexError, request_id: str) -> bytes:
        """`response.failed` is what clients wait for; the open item ends with it, unannounced."""
        self._draft.end_item("incomplete")
        failed = self._draft.response("failed", error=failure_of(error))
        return self._event({"type": "response.failed", "response": failed})

    def _start(self, event: TextDelta | ReasoningDelta | ToolCallStarted) -> bytes:
        ended = self._end_item("completed")
        item = self._draft.begin(event)
        index = self._draft.index
        self._grown_by = item.grown_by
        delta = item.delta()
        self._delta_head = (
            b"event: %b\ndata: " % delta["type"].encode()
            + _encode({"type": delta["type"], "output_index": index, **delta})[:-1]
            + b',"delta":'
        )
        added = {"type": "response.output_item.added", "item": item.shown("in_progress")}
        return ended + b"".join(self._item_event(index, told) for told in (added, *item.opening()))

    def _delta(self, text: str) -> bytes:
        return self._told(self._draft.grow(text))

    def _told(self, text: str) -> bytes:
        if not text:
            return b""
        number = self._num_events
        self._num_events = number + 1
        return b'%b%b,"sequence_number":%d}\n\n' % (self._delta_head, _encode(text), number)

    def _end_item(self, status: str) -> bytes:
        index, item = self._draft.index, self._draft.item
        if item is None:
            return b""
        rest = self._told(self._draft.complete())
        closing = item.closing()
        done = {"type": "response.output_item.done", "item": self._draft.end_item(status)}
        return rest + b"".join(self._item_event(index, told) for told in (*closing, done))

    def _finish(self, reason: str, usage: Usage) -> bytes:
        status, details = _ENDS.get(reason, _COMPLETED)
        ended = self._end_item(status)
        response = self._draft.response(status, incomplete_details=details, usage=_usage(usage))
        return ended + self._event({"type": f"response.{status}", "response": response})

    def _item_event(self, index: int, fields: dict[str, Any]) -> bytes:
        return self._event({"type": fields["type"], "output_index": index, **fields})

    def _event(self, fields: dict[str, Any]) -> bytes:
        number = self._num_events
        self._num_events = number + 1
        told = _encode({**fields, "sequence_number": number})
        return b"event: %b\ndata: %b\n\n" % (fields["type"].encode(), told)


class WholeResponse:
    """Collects what a stream would tell."""

    def __init__(self, shape: ResponseShape, head: AnswerHead) -> None:
        self._draft = _Draft(shape, head)
        self._response: bytes | None = None

    def feed(self, event: ChatEvent) -> None:
        """Raises UpstreamError for arguments of a call that never started."""
        match event:
            case TextDelta(text) | ReasoningDelta(text):
                self._open_item_for(event)
                self._draft.grow(text)
            case ToolArgumentsDelta(_, text):
                if not isinstance(self._draft.item, FunctionCall | CustomToolCall):
                    raise UpstreamError("The neuron's answer makes no sense.")
                self._draft.grow(text)
            case ToolCallStarted():
                self._draft.end_item("completed")
                self._draft.begin(event)
            case Finished(reason, usage):
                self._finish(reason, usage)
            case PromptRead():
                pass
            case _:
                assert_never(event)

    def body(self) -> bytes:
        assert self._response is not None, "not finished"
        return self._response

    def _open_item_for(self, event: TextDelta | ReasoningDelta) -> None:
        item = self._draft.item
        if item is None or item.grown_by is not type(event):
            self._draft.end_item("completed")
            self._draft.begin(event)

    def _finish(self, reason: str, usage: Usage) -> None:
        status, details = _ENDS.get(reason, _COMPLETED)
        self._draft.end_item(status)
        self._response = bytes(
            self._draft.response(status, incomplete_details=details, usage=_usage(usage))
        )


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
