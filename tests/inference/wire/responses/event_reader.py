"""Reads a stream of responses as a client does: bytes cut anywhere in, events out.

Written from what OpenAI's clients expect, not from what the encoder does.
"""

import itertools
from typing import Any

from inference.wire import events
from tests.inference.raw_http import parse_json


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(borders)]


class EventReader:
    """Lines as they end; a frame is an event's name, its data and an empty line."""

    def __init__(self) -> None:
        self._line = b""
        self._name = ""
        self._data: list[str] = []
        self.payloads: list[dict[str, Any]] = []

    def feed(self, piece: bytes) -> None:
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            self._take(line.decode())

    def _take(self, line: str) -> None:
        if line.startswith(":"):
            return
        if line:
            name, _, value = line.partition(": ")
            assert name in ("event", "data"), line
            if name == "event":
                self._name = value
            else:
                self._data.append(value)
            return
        payload = parse_json("\n".join(self._data))
        assert payload["type"] == self._name
        assert payload["sequence_number"] == len(self.payloads)
        self.payloads.append(payload)
        self._name, self._data = "", []


def read(data: bytes, places: list[int] | None = None) -> list[dict[str, Any]]:
    reader = EventReader()
    for piece in cut(data, places or []):
        reader.feed(piece)
    return reader.payloads


def told(payloads: list[dict[str, Any]], *, is_whole: bool = True) -> list[events.Delta]:
    """Return what the payloads say, checking that items open, grow and close in order."""
    assert payloads[0]["type"] == "response.created"
    found: list[events.Delta] = []
    num_calls = num_done = 0
    is_open = False
    for payload in payloads:
        if "output_index" in payload:
            assert payload["output_index"] == num_done
        match payload["type"]:
            case "response.output_item.added":
                assert not is_open
                is_open, item = True, payload["item"]
                assert item["status"] == "in_progress"
                if item["type"] == "function_call":
                    found.append(events.ToolCallStarted(num_calls, item["call_id"], item["name"]))
                    num_calls += 1
            case "response.output_item.done":
                assert is_open
                is_open, num_done = False, num_done + 1
            case "response.output_text.delta":
                found.append(events.TextDelta(payload["delta"]))
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                found.append(events.ReasoningDelta(payload["delta"]))
            case "response.function_call_arguments.delta":
                found.append(events.ToolArgumentsDelta(num_calls - 1, payload["delta"]))
    assert not (is_open and is_whole)
    return found


def joined(deltas: list[events.Delta]) -> list[tuple[str, ...]]:
    """Return what was said piece by piece as whole items."""
    items: list[list[str]] = []
    for delta in deltas:
        match delta:
            case events.ToolCallStarted(_, call_id, name):
                items.append(["function_call", call_id, name, ""])
            case events.ToolArgumentsDelta(_, text):
                items[-1][-1] += text
            case events.TextDelta(text) | events.ReasoningDelta(text):
                kind = "message" if isinstance(delta, events.TextDelta) else "reasoning"
                if items and items[-1][0] == kind:
                    items[-1][-1] += text
                else:
                    items.append([kind, text])
    return [tuple(item) for item in items]


def items_of(response: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the items of a response object in the same form."""
    found: list[tuple[str, ...]] = []
    for item in response["output"]:
        match item:
            case {"type": "message", "content": [{"text": text}]}:
                found.append(("message", text))
            case {"type": "reasoning", "content": [{"text": text}]}:
                found.append(("reasoning", text))
            case {"type": "reasoning", "summary": [{"text": text}]}:
                found.append(("reasoning", text))
            case {"type": "function_call"}:
                found.append(("function_call", item["call_id"], item["name"], item["arguments"]))
    return found
