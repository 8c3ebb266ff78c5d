"""An answer as a stream of Anthropic's events: message_start, the blocks, message_stop.

State is a value: what stands open. Frames of deltas are put together from bytes, since there is
one for every token. It knows no clock: a silent stream is its caller's to keep alive.
"""

from enum import Enum, auto
from typing import Any, assert_never

import msgspec

from inference.wire.anthropic.dialect import DIALECT, PING
from inference.wire.anthropic.facts import (
    NO_USAGE,
    AnswerFacts,
    Thoughts,
    ending,
    stray_arguments,
    usage_body,
)
from inference.wire.anthropic.tools import swapped_id
from inference.wire.errors import CortexError
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

_END_OF_DELTA = b"}}\n\n"
_encode = msgspec.json.Encoder().encode


class _Open(Enum):
    """What stands open: nothing yet, the message alone, or a block in it."""

    NOTHING = auto()
    MESSAGE = auto()
    TEXT = auto()
    THINKING = auto()
    TOOL_USE = auto()


class MessageStream:
    """At most one content block is open, and block indexes count up from zero without gaps."""

    def __init__(self, facts: AnswerFacts) -> None:
        self._facts = facts
        self._open = _Open.NOTHING
        self._index = -1
        """Of the block that was opened last."""
        self._start_of_delta = b""

    def open(self) -> bytes:
        """Return a ping: message_start must say how long the prompt is."""
        return PING

    def feed(self, event: ChatEvent) -> bytes:
        """Raises UpstreamError for what no answer consists of."""
        event = self._facts.shown(event)
        match event:
            case TextDelta("") | ReasoningDelta(""):
                return b""
            case TextDelta(text):
                return self._text(text)
            case ReasoningDelta(text):
                return self._thinking(text)
            case ToolArgumentsDelta(_, text):
                return self._arguments(text)
            case ToolCallStarted():
                return self._tool_use(event)
            case PromptRead(usage):
                return self._begin(usage)
            case Finished():
                return self._finish(event)
            case _:
                assert_never(event)

    def idle(self) -> bytes:
        return b""  # the dialect's pings are enough

    def fail(self, error: CortexError, request_id: str) -> bytes:
        return DIALECT.error_frame(error, request_id)

    def _text(self, text: str) -> bytes:
        if self._open is _Open.TEXT:
            return self._delta(text)
        start = self._start_block(_Open.TEXT, {"type": "text", "text": ""})
        return start + self._delta(text)

    def _thinking(self, text: str) -> bytes:
        start = b""
        if self._open is not _Open.THINKING:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            start = self._start_block(_Open.THINKING, block)
        return start + self._delta(text) if self._facts.thoughts is Thoughts.SHOWN else start

    def _tool_use(self, call: ToolCallStarted) -> bytes:
        block = {"type": "tool_use", "id": swapped_id(call.id), "name": call.name, "input": {}}
        return self._start_block(_Open.TOOL_USE, block)

    def _arguments(self, text: str) -> bytes:
        if self._open is not _Open.TOOL_USE:
            raise stray_arguments()
        return self._delta(text)

    def _begin(self, usage: Usage) -> bytes:
        if self._open is not _Open.NOTHING:
            return b""
        self._open = _Open.MESSAGE
        return _frame({"type": "message_start", "message": self._facts.message(usage)})

    def _finish(self, finished: Finished) -> bytes:
        ended = {
            "type": "message_delta",
            "delta": ending(finished),
            "usage": usage_body(finished.usage),
            **self._facts.edits(),
        }
        frames = self._begin(finished.usage) + self._stop_block() + _frame(ended)
        return frames + _frame({"type": "message_stop"})

    def _start_block(self, kind: _Open, block: dict[str, Any]) -> bytes:
        before = self._begin(NO_USAGE) + self._stop_block()
        self._open = kind
        self._index += 1
        self._start_of_delta = _start_of_delta(kind, self._index)
        started = {"type": "content_block_start", "index": self._index, "content_block": block}
        return before + _frame(started)

    def _stop_block(self) -> bytes:
        if self._open in (_Open.NOTHING, _Open.MESSAGE):
            return b""
        signed = self._signature() if self._open is _Open.THINKING else b""
        self._open = _Open.MESSAGE
        return signed + _frame({"type": "content_block_stop", "index": self._index})

    def _signature(self) -> bytes:
        delta = {"type": "signature_delta", "signature": self._facts.signature(self._index)}
        return _frame({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _delta(self, text: str) -> bytes:
        return self._start_of_delta + _encode(text) + _END_OF_DELTA


def _start_of_delta(kind: _Open, index: int) -> bytes:
    """Return the frame of a block's delta up to its text."""
    type_and_field = {
        _Open.TEXT: b'"text_delta","text":',
        _Open.THINKING: b'"thinking_delta","thinking":',
        _Open.TOOL_USE: b'"input_json_delta","partial_json":',
    }
    return (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
        b'"delta":{"type":%s' % (index, type_and_field[kind])
    )


def _frame(payload: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (payload["type"].encode(), _encode(payload))
