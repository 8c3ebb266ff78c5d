"""What an answer consists of, whoever asked for it: a closed union of frozen events.

A neuron's stream is decoded to them, and every dialect but OpenAI's chat is encoded from them. A
failure is no event: it is a CortexError. They are those of one choice: only OpenAI's chat has more.
"""

from dataclasses import dataclass

from neuron_agent.protocol import Usage


@dataclass(frozen=True, slots=True)
class PromptRead:
    """How long the prompt is, and how much of it was cached: comes once, before any text."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text that the model thinks and does not say."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A tool call begins; `index` counts the calls from 0. Its id is the neuron's."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """A piece of the arguments of the call that started last; all of them are one JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event. `reason` is stop, length, tool_calls or content_filter.

    `stop_sequence` is the stop string that ended it, None where the model itself came to an end.
    """

    reason: str
    usage: Usage
    stop_sequence: str | None = None


Delta = TextDelta | ReasoningDelta | ToolCallStarted | ToolArgumentsDelta
ChatEvent = PromptRead | Delta | Finished
