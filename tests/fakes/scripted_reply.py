"""A reply as a test writes it, with the deltas and the message that a neuron makes of it.

It knows no requests and no clocks.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_WORD = re.compile(r"\S*\s*")
_PIECE_CHARACTERS = 5


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    name: str
    arguments: Mapping[str, object]

    @property
    def json(self) -> str:
        return json.dumps(self.arguments)


@dataclass(frozen=True, slots=True)
class ScriptedReply:
    """What a model says once: it thinks, then speaks, then calls tools."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ScriptedCall, ...] = ()

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.calls else "stop"

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Yield the pieces of the message in order: words, and arguments a few letters each."""
        for word in filter(None, _WORD.findall(self.reasoning)):
            yield {"reasoning_content": word}
        for word in filter(None, _WORD.findall(self.text)):
            yield {"content": word}
        for index, call in enumerate(self.calls):
            yield {"tool_calls": [{"index": index, **_shown(index, call, arguments="")}]}
            for start in range(0, len(call.json), _PIECE_CHARACTERS):
                piece = call.json[start : start + _PIECE_CHARACTERS]
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

    def message(self) -> dict[str, Any]:
        """Return the message whole; one of calls alone has null for content."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self.text if self.text or not self.calls else None,
        }
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            calls = enumerate(self.calls)
            message["tool_calls"] = [_shown(index, call, call.json) for index, call in calls]
        return message


def _shown(index: int, call: ScriptedCall, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call_fake{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
