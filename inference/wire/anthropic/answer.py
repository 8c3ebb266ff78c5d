"""An answer as an Anthropic message that comes at once, and the shape that has both forms.

Its blocks are those of the stream: deltas of one kind in a row are one, each tool's call is one.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

import msgspec

from inference.wire.anthropic.facts import (
    NO_USAGE,
    AnswerFacts,
    Thoughts,
    ending,
    stray_arguments,
)
from inference.wire.anthropic.stream import MessageStream
from inference.wire.anthropic.tools import swapped_id
from inference.wire.dialect import AnswerHead
from inference.wire.events import (
    ChatEvent,
    Finished,
    PromptRead,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallStarted,
)

_Kind = Literal["text", "thinking", "tool_use"]


@dataclass(frozen=True, slots=True)
class MessageShape:
    """How the answer to a request for a message looks."""

    model: str
    thoughts: Thoughts
    has_edits: bool = False
    is_silent: bool = False

    def stream(self, head: AnswerHead) -> MessageStream:
        return MessageStream(self._facts(head))

    def whole(self, head: AnswerHead) -> "MessageCollector":
        return MessageCollector(self._facts(head))

    def _facts(self, head: AnswerHead) -> AnswerFacts:
        return AnswerFacts(head, self.model, self.thoughts, self.has_edits, self.is_silent)


@dataclass(frozen=True, slots=True)
class _Block:
    kind: _Kind
    call: ToolCallStarted | None = None
    pieces: list[str] = field(default_factory=list)


class MessageCollector:
    """Fed all events of an answer, it gives the message."""

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts
        self._blocks: list[_Block] = []
        self._finished = Finished("stop", NO_USAGE)

    def feed(self, event: ChatEvent) -> None:
        """Raises UpstreamError for what no answer consists of."""
        event = self._facts.shown(event)
        match event:
            case PromptRead() | TextDelta("") | ReasoningDelta(""):
                pass
            case TextDelta(text):
                self._add("text", text)
            case ReasoningDelta(text):
                self._add("thinking", text)
            case ToolArgumentsDelta(_, text):
                if not self._blocks or self._blocks[-1].kind != "tool_use":
                    raise stray_arguments()
                self._blocks[-1].pieces.append(text)
            case ToolCallStarted():
                self._blocks.append(_Block("tool_use", event))
            case Finished():
                self._finished = event
            case _:
                assert_never(event)

    def body(self) -> bytes:
        ended = {
            "content": [self._content(index, block) for index, block in enumerate(self._blocks)],
            **ending(self._finished),
            **self._facts.edits(),
        }
        return msgspec.json.encode(self._facts.message(self._finished.usage) | ended)

    def _add(self, kind: Literal["text", "thinking"], text: str) -> None:
        if not self._blocks or self._blocks[-1].kind != kind:
            self._blocks.append(_Block(kind))
        self._blocks[-1].pieces.append(text)

    def _content(self, index: int, block: _Block) -> dict[str, Any]:
        text = "".join(block.pieces)
        if block.call is not None:
            return _tool_use(block.call, text)
        if block.kind == "text":
            return {"type": "text", "text": text}
        shown = text if self._facts.thoughts is Thoughts.SHOWN else ""
        signature = self._facts.signature(index)
        return {"type": "thinking", "thinking": shown, "signature": signature}


def _tool_use(call: ToolCallStarted, arguments: str) -> dict[str, Any]:
    """Return the block of a call. Arguments that are no object, for they were cut off, are none."""
    input_: Any = {}
    try:
        if isinstance(msgspec.json.decode(arguments), dict):
            input_ = msgspec.Raw(arguments.encode())
    except (msgspec.DecodeError, RecursionError):
        pass
    return {"type": "tool_use", "id": swapped_id(call.id), "name": call.name, "input": input_}
