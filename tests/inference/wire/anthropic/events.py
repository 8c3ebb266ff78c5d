"""Lists of events as a neuron gives them, and a reader of streams that shares no code with ours."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from inference.wire.dialect import AnswerHead
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
from neuron_agent.protocol import Usage

HEAD = AnswerHead(unique="0123abcd" * 4, created=1_700_000_000)
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}

texts = st.text(min_size=1, max_size=12)
names = st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(st.integers(0, 2**31))
    completion = draw(st.integers(0, 2**31))
    cached, reasoning = draw(st.integers(0, prompt)), draw(st.integers(0, completion))
    return Usage(prompt, completion, cached, reasoning)


@st.composite
def tool_calls(draw: st.DrawFn) -> list[Delta]:
    """The calls' indexes are for the list that has them to give."""
    arguments = json.dumps(draw(st.dictionaries(texts, texts | st.integers(), max_size=3)))
    cuts = sorted(draw(st.sets(st.integers(1, len(arguments) - 1), max_size=3)))
    edges = [0, *cuts, len(arguments)]
    pieces = [arguments[a:b] for a, b in itertools.pairwise(edges)]
    started = ToolCallStarted(0, "call_" + draw(names), draw(names))
    return [started, *(ToolArgumentsDelta(0, piece) for piece in pieces)]


def numbered(runs: list[list[Delta]]) -> Iterator[Delta]:
    index = -1
    for delta in (delta for run in runs for delta in run):
        match delta:
            case ToolCallStarted():
                index += 1
                yield ToolCallStarted(index, delta.id, delta.name)
            case ToolArgumentsDelta():
                yield ToolArgumentsDelta(index, delta.text)
            case _:
                yield delta


@st.composite
def endings(draw: st.DrawFn) -> Finished:
    sequence = draw(st.none() | texts)
    reasons = ["stop"] if sequence else ["stop", "length", "tool_calls", "content_filter"]
    return Finished(draw(st.sampled_from(reasons)), draw(usages()), sequence)


@st.composite
def answers(draw: st.DrawFn) -> list[ChatEvent]:
    spoken = st.lists(st.builds(TextDelta, texts) | st.builds(ReasoningDelta, texts), max_size=4)
    runs = draw(st.lists(spoken | tool_calls(), max_size=5))
    return [PromptRead(draw(usages())), *numbered(runs), draw(endings())]


class StreamReader:
    """Reads a stream cut anywhere; each frame that Anthropic's clients would not expect fails."""

    def __init__(self) -> None:
        self.events: list[ChatEvent] = []
        self.num_pings = 0
        self._rest = b""
        self._block: dict[str, Any] | None = None
        self._num_blocks = 0
        self._num_calls = 0
        self._is_signed = False
        self._last = ""

    def feed(self, piece: bytes) -> None:
        *frames, self._rest = (self._rest + piece).split(b"\n\n")
        for frame in frames:
            lines = frame.split(b"\n")
            if lines[0].startswith(b":") and len(lines) == 1:
                continue
            event, data = lines
            assert event.startswith(b"event: ")
            assert data.startswith(b"data: ")
            payload = json.loads(data[6:])
            assert payload["type"] == event[7:].decode()
            self._read(payload)

    def check_complete(self) -> None:
        assert self._rest == b""
        assert self._last == "message_stop"

    def _read(self, payload: dict[str, Any]) -> None:
        kind = payload["type"]
        if kind == "ping":
            self.num_pings += 1
            return
        assert self._last != "message_stop"
        assert (self._last == "") == (kind == "message_start")
        getattr(self, f"_{kind}")(payload)
        self._last = kind

    def _message_start(self, payload: dict[str, Any]) -> None:
        message = payload["message"]
        assert message["id"] == "msg_" + HEAD.unique
        assert message["content"] == []
        self.events.append(PromptRead(usage_of(message["usage"])))

    def _content_block_start(self, payload: dict[str, Any]) -> None:
        assert self._block is None
        assert payload["index"] == self._num_blocks
        self._num_blocks += 1
        self._block, self._is_signed = payload["content_block"], False
        if self._block["type"] == "tool_use":
            assert self._block["id"].startswith("toolu_")
            call_id = "call_" + self._block["id"].removeprefix("toolu_")
            self.events.append(ToolCallStarted(self._num_calls, call_id, self._block["name"]))
            self._num_calls += 1

    def _content_block_delta(self, payload: dict[str, Any]) -> None:
        assert self._block is not None
        assert payload["index"] == self._num_blocks - 1
        delta = payload["delta"]
        match self._block["type"], delta:
            case "text", {"type": "text_delta", "text": text}:
                self.events.append(TextDelta(text))
            case "thinking", {"type": "thinking_delta", "thinking": text}:
                assert not self._is_signed
                self.events.append(ReasoningDelta(text))
            case "thinking", {"type": "signature_delta", "signature": str(signature)}:
                assert signature
                self._is_signed = True
            case "tool_use", {"type": "input_json_delta", "partial_json": text}:
                self.events.append(ToolArgumentsDelta(self._num_calls - 1, text))
            case other:
                raise AssertionError(other)

    def _content_block_stop(self, payload: dict[str, Any]) -> None:
        assert self._block is not None
        assert payload["index"] == self._num_blocks - 1
        assert self._is_signed == (self._block["type"] == "thinking")
        self._block = None

    def _message_delta(self, payload: dict[str, Any]) -> None:
        assert self._block is None
        reason, sequence = payload["delta"]["stop_reason"], payload["delta"]["stop_sequence"]
        assert (reason == "stop_sequence") == (sequence is not None)
        usage = usage_of(payload["usage"])
        self.events.append(Finished(FINISH_REASONS[reason], usage, sequence))

    def _message_stop(self, payload: dict[str, Any]) -> None:
        assert self._last == "message_delta"


def usage_of(usage: dict[str, Any]) -> Usage:
    cached = usage["cache_read_input_tokens"]
    return Usage(
        usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached,
        usage["output_tokens"],
        cached,
        usage["output_tokens_details"]["thinking_tokens"],
    )
