"""Decodes a neuron's stream of chat chunks to events: bytes in, cut anywhere, events out.

Sans-IO. It reads choice 0 alone, since nobody who needs events asks for more. A chunk that cannot
be read, or an error frame, raises: such a stream has no good end.
"""

from collections.abc import Iterator

import msgspec

from inference.wire import neuron_answer
from inference.wire.events import (
    ChatEvent,
    Delta,
    Finished,
    PromptRead,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallStarted,
)
from inference.wire.sse import BORDER, BadStream, ControlFrameFilter, WholeFrames
from neuron_agent.protocol import ControlFrame, ErrorDetail, Progress

_DATA = b"data: "
_DONE = b"[DONE]"


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: ErrorDetail | None = None


_chunk_decoder = msgspec.json.Decoder(_Chunk)


class ChatStreamDecoder:
    """Feed what comes of a stream; Progress says where a request is that has no token yet."""

    def __init__(self) -> None:
        self._frames = ControlFrameFilter()
        self._whole = WholeFrames()
        self.is_complete = False
        """The last event has come."""
        self.last_control = ControlFrame()

    def feed(self, chunk: bytes) -> list[ChatEvent | Progress]:
        """Raises BadStream, and NeuronAnswered for an error frame. The last event ends it all."""
        if self.is_complete:
            return []
        piece = self._frames.feed(chunk)
        early: list[ChatEvent | Progress] = []
        late: list[ChatEvent | Progress] = []
        for raw in piece.controls:
            self._read_control(neuron_answer.read_control(raw), early, late)
        return [*early, *self._data_events(piece.data), *late]

    def _read_control(
        self,
        control: ControlFrame,
        early: list[ChatEvent | Progress],
        late: list[ChatEvent | Progress],
    ) -> None:
        """What it says comes before the data of its chunk, but for the end."""
        if control.progress is not None:
            early.append(control.progress)
        if control.usage is None or self.is_complete:
            return
        self.last_control = control
        if control.finish_reason is None:
            early.append(PromptRead(control.usage))
        else:
            self.is_complete = True
            late.append(Finished(control.finish_reason, control.usage, control.stop_sequence))

    def _data_events(self, data: bytes) -> Iterator[Delta]:
        for frame in self._whole.feed(data).split(BORDER):
            if frame.startswith(_DATA) and not frame.endswith(_DONE):
                yield from _events_of(frame[len(_DATA) :])


def _events_of(data: bytes) -> Iterator[Delta]:
    """Raises BadStream, NeuronAnswered."""
    try:
        chunk = _chunk_decoder.decode(data)
    except neuron_answer.UNREADABLE:
        raise BadStream("a frame cannot be read") from None
    if chunk.error is not None:
        raise neuron_answer.streamed_error(chunk.error)
    for choice in chunk.choices:
        delta = choice.delta
        if delta.reasoning_content:
            yield ReasoningDelta(delta.reasoning_content)
        if delta.content:
            yield TextDelta(delta.content)
        for call in delta.tool_calls or ():
            if call.id is not None:
                yield ToolCallStarted(call.index, call.id, call.function.name or "")
            if call.function.arguments:
                yield ToolArgumentsDelta(call.index, call.function.arguments)
