"""How long to leave a (model, neuron) pair alone after its loads failed, and what follows from it.

It counts nothing and keeps no time: who failed how often is a fact of the caller's.
"""

from collections.abc import Iterable

from fleet.planner.actions import Refusal, RefusalCode

FIRST_COOLDOWN_SECONDS = 10
LONGEST_COOLDOWN_SECONDS = 300


def cooldown_seconds(num_failures: int) -> int:
    """Return the pause after so many failures in a row: 10 s, doubling to 300; none after none."""
    if num_failures <= 0:
        return 0
    # The shift is capped too: a long row of failures must not build a huge number first.
    num_doublings = min(num_failures - 1, LONGEST_COOLDOWN_SECONDS.bit_length())
    return min(FIRST_COOLDOWN_SECONDS << num_doublings, LONGEST_COOLDOWN_SECONDS)


def is_only_cooling_down(refusals: Iterable[Refusal]) -> bool:
    """Whether a failed load is all there is to wait for: no other neuron may yet take the model."""
    codes = {refusal.code for refusal in refusals}
    others = codes - {RefusalCode.COOLING_DOWN}
    return RefusalCode.COOLING_DOWN in codes and not any(code.passes for code in others)
