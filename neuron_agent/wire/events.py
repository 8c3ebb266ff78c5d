"""What happens to a request, as the wire encodes it: a closed union of frozen events.

A failure is no event: it is a NeuronError, since before the first byte it decides the status.
A request has one or more choices (OpenAI's `n`), numbered from 0.
"""

from dataclasses import dataclass

from neuron_agent.protocol import Timing, Usage


@dataclass(frozen=True, slots=True)
class Waited:
    """About a second passed without text. `stage` is queued, prefill or decode."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The first token is computed: what the prompt cost is known. Comes once, before any choice.

    With several prompts, what the later ones take from the cache is not counted yet.
    """

    usage: Usage


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids behind the events that follow, up to the next Tokens of the same choice."""

    ids: tuple[int, ...]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token as OpenAI's logprobs show it: its text, its bytes, its natural log probability."""

    text: str
    utf8: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The chosen token and the best ones there were at its place, best first."""

    chosen: TokenChance
    top: tuple[TokenChance, ...] = ()
    num_characters: int = 0
    """How much text came with it; none where it is only the first part of a character."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens that completed this text; the bytes of a choice joined give its text."""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text that the model thinks and does not say."""

    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolCallStarted:
    """A tool call begins; `index` counts the calls of its choice from 0."""

    index: int
    id: str
    name: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """A piece of a call's arguments; the pieces joined are one JSON object."""

    index: int
    text: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """A choice is complete; `reason` is stop, length or tool_calls."""

    reason: str
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event, after every choice is complete. `reason` is that of choice 0.

    `stop_sequence` is the stop string that ended choice 0, None where it ended otherwise.
    """

    reason: str
    usage: Usage
    timing: Timing
    stop_sequence: str | None = None


ChoiceEvent = TextDelta | ReasoningDelta | ToolCallStarted | ToolArgumentsDelta | ChoiceFinished
ChatEvent = Waited | PromptRead | Tokens | ChoiceEvent | Finished
