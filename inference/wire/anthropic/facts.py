"""What an answer says of itself, streamed or at once: its head, its usage, why it ended.

It knows neither blocks nor frames.
"""

import base64
from dataclasses import dataclass
from typing import Any

from inference.wire.dialect import AnswerHead
from inference.wire.errors import UpstreamError
from inference.wire.events import Finished
from neuron_agent.protocol import Usage

NO_USAGE = Usage(0, 0)

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What is known before the model has said anything."""

    head: AnswerHead
    model: str
    """As the client named it."""
    is_thinking_shown: bool

    def message(self, usage: Usage) -> dict[str, Any]:
        """Return a message without content that has not ended."""
        return {
            "id": f"msg_{self.head.unique}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_body(usage),
        }

    def signature(self, block_index: int) -> str:
        """Return what ends a thinking block: the same each time, and nobody's to read."""
        return base64.b64encode(f"cortex:{self.head.unique}:{block_index}".encode()).decode()


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return counts of which those of input add up to the prompt."""
    cached_tokens = min(usage.cached_tokens, usage.prompt_tokens)
    return {
        "input_tokens": usage.prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def ending(finished: Finished) -> dict[str, str | None]:
    """Return stop_reason and stop_sequence."""
    if finished.stop_sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop_sequence}
    return {"stop_reason": _STOP_REASONS.get(finished.reason, "end_turn"), "stop_sequence": None}


def stray_arguments() -> UpstreamError:
    return UpstreamError("The neuron's answer has arguments of no tool call.")
