"""What an answer says of itself, streamed or at once: its head, its usage, why it ended.

It knows neither blocks nor frames.
"""

import base64
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from inference.wire.dialect import AnswerHead
from inference.wire.errors import UpstreamError
from inference.wire.events import ChatEvent, Finished, PromptRead, ReasoningDelta, TextDelta
from neuron_agent.protocol import Usage

NO_USAGE = Usage(0, 0)

_NOTHING_WRITTEN = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}
_REFUSAL = {"type": "refusal", "category": None, "explanation": None}
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class Thoughts(Enum):
    """What becomes of a model's thinking in an answer."""

    SHOWN = auto()
    OMITTED = auto()
    """There are blocks of it, signed and empty."""
    UNASKED = auto()
    """There is nothing of it: who did not ask for thinking expects an answer to begin with text."""


@dataclass(frozen=True, slots=True)
class AnswerFacts:
    """What is known before the model has said anything."""

    head: AnswerHead
    model: str
    """As the client named it."""
    thoughts: Thoughts
    has_edits: bool = False
    """The request told how to edit its context: the answer says what was done, which is nothing."""
    is_silent: bool = False
    """The prompt alone was to be read, and nothing to be said."""

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
            "stop_details": None,
            "usage": {
                **usage_body(usage),
                "cache_creation": _NOTHING_WRITTEN,
                "service_tier": "standard",
            },
        }

    def shown(self, event: ChatEvent) -> ChatEvent:
        """Return the event as it is to be told; an empty text says nothing."""
        match event:
            case ReasoningDelta() if self.thoughts is Thoughts.UNASKED:
                return TextDelta("")
            case Finished(_, usage) if self.is_silent:
                return Finished("length", Usage(usage.prompt_tokens, 0, usage.cached_tokens))
            case _ if self.is_silent and not isinstance(event, PromptRead):
                return TextDelta("")
            case _:
                return event

    def edits(self) -> dict[str, Any]:
        """Return what goes beside the last usage."""
        return {"context_management": {"applied_edits": []}} if self.has_edits else {}

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


def ending(finished: Finished) -> dict[str, Any]:
    """Return stop_reason, and what is told of it beside."""
    sequence = finished.stop_sequence
    reason = _STOP_REASONS.get(finished.reason, "end_turn")
    return {
        "stop_reason": reason if sequence is None else "stop_sequence",
        "stop_sequence": sequence,
        "stop_details": _REFUSAL if reason == "refusal" else None,
    }


def stray_arguments() -> UpstreamError:
    return UpstreamError("The neuron's answer has arguments of no tool call.")
