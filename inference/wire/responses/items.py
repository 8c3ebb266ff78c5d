"""The items an answer consists of: how each looks, and how a stream tells of it.

An item collects the pieces of one text. It knows neither its place in the answer nor the number of
an event: those are the stream's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from inference.wire.events import ReasoningDelta, TextDelta, ToolArgumentsDelta
from inference.wire.responses import carried
from inference.wire.responses.freeform import TextReader

Fields = dict[str, Any]


class Item(Protocol):
    pieces: list[str]
    grown_by: ClassVar[type]
    """The event that brings another piece of its text."""

    def shown(self, status: str) -> Fields:
        """Return the item with the text it has; status: in_progress, completed, incomplete."""

    def opening(self) -> Sequence[Fields]:
        """Return the events between output_item.added and the first delta."""

    def delta(self) -> Fields:
        """Return the event that brings a piece, without the piece."""

    def closing(self) -> Sequence[Fields]:
        """Return the events between the last delta and output_item.done."""


@dataclass(slots=True)
class Message:
    """What the model says."""

    id: str
    pieces: list[str] = field(default_factory=list)
    grown_by: ClassVar[type] = TextDelta

    @property
    def _place(self) -> Fields:
        return {"item_id": self.id, "content_index": 0}

    def _part(self) -> Fields:
        return {
            "type": "output_text",
            "annotations": [],
            "logprobs": [],
            "text": "".join(self.pieces),
        }

    def shown(self, status: str) -> Fields:
        content = [] if status == "in_progress" else [self._part()]
        return {
            "type": "message",
            "id": self.id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def opening(self) -> Sequence[Fields]:
        return [{"type": "response.content_part.added", **self._place, "part": self._part()}]

    def delta(self) -> Fields:
        return {"type": "response.output_text.delta", **self._place, "logprobs": []}

    def closing(self) -> Sequence[Fields]:
        part = self._part()
        text = {"text": part["text"], "logprobs": []}
        return [
            {"type": "response.output_text.done", **self._place, **text},
            {"type": "response.content_part.done", **self._place, "part": part},
        ]


@dataclass(slots=True)
class _Call:
    """A call of one of the client's tools; its pieces are of what it is called with."""

    id: str
    call_id: str
    name: str
    namespace: str | None = None
    pieces: list[str] = field(default_factory=list)
    grown_by: ClassVar[type] = ToolArgumentsDelta
    item_type: ClassVar[str]
    given: ClassVar[str]
    """The field of what it is called with."""
    event: ClassVar[str]

    def shown(self, status: str) -> Fields:
        namespace = {} if self.namespace is None else {"namespace": self.namespace}
        return {
            "type": self.item_type,
            "id": self.id,
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            **namespace,
            self.given: "".join(self.pieces),
        }

    def opening(self) -> Sequence[Fields]:
        return []

    def delta(self) -> Fields:
        return {"type": f"{self.event}.delta", "item_id": self.id}

    def closing(self) -> Sequence[Fields]:
        text = {"item_id": self.id, self.given: "".join(self.pieces)}
        return [{"type": f"{self.event}.done", **text}]


@dataclass(slots=True)
class FunctionCall(_Call):
    """A call of one of the client's functions."""

    item_type = "function_call"
    given = "arguments"
    event = "response.function_call_arguments"

    def closing(self) -> Sequence[Fields]:
        (done,) = _Call.closing(self)  # slots make a class anew: plain super() is of the old one
        return [{**done, "name": self.name}]


@dataclass(slots=True)
class CustomToolCall(_Call):
    """A call of one of the client's tools that take any text."""

    item_type = "custom_tool_call"
    given = "input"
    event = "response.custom_tool_call_input"
    reader: TextReader = field(default_factory=TextReader)


@dataclass(slots=True)
class Reasoning:
    """What the model thinks, as its own words: the client asked for no summary of them."""

    id: str
    is_carried: bool
    """The client wants the text packed as well, to send it back."""
    pieces: list[str] = field(default_factory=list)
    grown_by: ClassVar[type] = ReasoningDelta

    @property
    def _place(self) -> Fields:
        return {"item_id": self.id, "content_index": 0}

    def _part(self) -> Fields:
        return {"type": "reasoning_text", "text": "".join(self.pieces)}

    def shown(self, status: str) -> Fields:
        content = [] if status == "in_progress" else [self._part()]
        fields = {"type": "reasoning", "id": self.id, "summary": [], "content": content}
        return _with_carried(fields, self, status)

    def opening(self) -> Sequence[Fields]:
        return [{"type": "response.content_part.added", **self._place, "part": self._part()}]

    def delta(self) -> Fields:
        return {"type": "response.reasoning_text.delta", **self._place}

    def closing(self) -> Sequence[Fields]:
        part = self._part()
        return [
            {"type": "response.reasoning_text.done", **self._place, "text": part["text"]},
            {"type": "response.content_part.done", **self._place, "part": part},
        ]


@dataclass(slots=True)
class SummarizedReasoning:
    """What the model thinks, under the name of a summary, as the client asked for one.

    An open model writes no summaries, and clients that want one show nothing else: so the summary
    is the whole text.
    """

    id: str
    is_carried: bool
    pieces: list[str] = field(default_factory=list)
    grown_by: ClassVar[type] = ReasoningDelta

    @property
    def _place(self) -> Fields:
        return {"item_id": self.id, "summary_index": 0}

    def _part(self) -> Fields:
        return {"type": "summary_text", "text": "".join(self.pieces)}

    def shown(self, status: str) -> Fields:
        summary = [] if status == "in_progress" else [self._part()]
        return _with_carried({"type": "reasoning", "id": self.id, "summary": summary}, self, status)

    def opening(self) -> Sequence[Fields]:
        return [
            {"type": "response.reasoning_summary_part.added", **self._place, "part": self._part()}
        ]

    def delta(self) -> Fields:
        return {"type": "response.reasoning_summary_text.delta", **self._place}

    def closing(self) -> Sequence[Fields]:
        part = self._part()
        return [
            {"type": "response.reasoning_summary_text.done", **self._place, "text": part["text"]},
            {"type": "response.reasoning_summary_part.done", **self._place, "part": part},
        ]


def _with_carried(fields: Fields, item: Reasoning | SummarizedReasoning, status: str) -> Fields:
    fields["status"] = status
    if item.is_carried:
        is_whole = status != "in_progress"
        fields["encrypted_content"] = carried.pack("".join(item.pieces)) if is_whole else None
    return fields
