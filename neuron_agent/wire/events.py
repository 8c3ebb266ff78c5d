"""What happens to a request, as the wire encodes it: a closed union of frozen events.

A failure is no event: it is a NeuronError, since before the first byte it decides the status.
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
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that ended well; `reason` is stop or length."""

    reason: str
    usage: Usage
    timing: Timing


ChatEvent = Waited | TextDelta | Finished
