"""How much a step may compute, in numbers and in the arithmetic that goes with them.

Streams wait while prompts are computed beside them. A token of a prompt costs the more the further
back its beginning lies, because it attends to everything before it; so beside decoding sequences
it is weighed. It knows no request.
"""

from dataclasses import dataclass
from typing import assert_never

from neuron_agent.scheduling.pool import KvLayout


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """The defaults suit a CPU: on one core they keep a pause within about three times the usual,
    with 8 sequences of a model of 70 M parameters decoding beside a prompt of 2,000 tokens."""

    step_tokens: int = 256
    """Prompt tokens computed in one step at most; decoding sequences' tokens come on top."""
    mixed_tokens: int = 16
    """The weight of prompt tokens that a step computes beside decoding sequences."""
    mixed_tokens_per_sequence: int = 3
    """How much more for every running sequence. Those that decode make a step longer anyway, so
    the pause stays in proportion; those that wait for their first token count as much as they."""
    doubling_tokens: int = 2048
    """A token of a prompt weighs one at its beginning, two so many tokens later, and so on."""
    reserve_tokens: int = 1024
    """How far ahead of its length a running sequence holds KV tokens."""
    whole_prompts: bool = False
    """Never cut a prompt: some caches cannot continue one. A long prompt then has its own step."""


GPU_LIMITS = SchedulerLimits(
    step_tokens=2048, mixed_tokens=256, mixed_tokens_per_sequence=8, doubling_tokens=16384
)
"""A GPU computes some hundred tokens in the time of one, and attention is a small part of it."""


def limits_for(layout: KvLayout) -> SchedulerLimits:
    """Return the limits for such a cache, and the kind of device that it is on."""
    match layout:
        case KvLayout.BLOCKS:
            return GPU_LIMITS
        case KvLayout.SLOTS:
            return SchedulerLimits()
        case KvLayout.PRIVATE:
            return SchedulerLimits(whole_prompts=True)
        case _:
            assert_never(layout)


class PromptBudget:
    """What a step has left for prompts, oldest first; mixed: some of the running decode in it."""

    def __init__(self, limits: SchedulerLimits, num_running: int, *, is_mixed: bool) -> None:
        mixed = limits.mixed_tokens + limits.mixed_tokens_per_sequence * num_running
        self._limits = limits
        self._is_mixed = is_mixed
        self._left: float = min(limits.step_tokens, mixed) if is_mixed else limits.step_tokens
        self._is_first = True

    def take(self, start: int, num_pending: int) -> int:
        """Return how many tokens the next prompt gets, of which `start` are computed already.

        The first one gets a token at least, so it always gets on; an uncut one gets all or none.
        """
        weight = 1 + start / self._limits.doubling_tokens if self._is_mixed else 1
        num_tokens = min(num_pending, int(self._left / weight))
        if self._limits.whole_prompts:
            num_tokens = num_pending if self._is_first or num_tokens == num_pending else 0
        elif self._is_first:
            num_tokens = max(1, num_tokens)
        self._left = max(0, self._left - num_tokens * weight)
        self._is_first = False
        return num_tokens
