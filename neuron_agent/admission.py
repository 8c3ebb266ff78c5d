"""Who may have a place of a model, who is turned away, and when it is worth asking again. Pure.

Places are requests that run or wait. An identified caller may hold so many; what identified callers
do not hold is for the anonymous ones together, except that one identified caller's share is always
left free. It knows no requests, no clock and no HTTP.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

ANONYMOUS = ""
MAX_RETRY_SECONDS = 60


class Verdict(StrEnum):
    """What becomes of a request; the refusals are named as `/health` counts them."""

    ADMITTED = "admitted"
    SATURATED = "saturated"
    OVER_SHARE = "over_share"
    NEVER = "too_many_choices"


@dataclass(frozen=True, slots=True)
class Places:
    """How many places a model has."""

    max_in_flight: int
    max_queue_depth: int
    max_per_principal: int | None = None

    @property
    def total(self) -> int:
        return self.max_in_flight + self.max_queue_depth

    def share_of(self, principal: str, num_held_by: Mapping[str, int]) -> int:
        """Return how many places a caller may hold now, those it holds already included."""
        if self.max_per_principal is None:
            return self.total
        if principal != ANONYMOUS:
            return min(self.max_per_principal, self.total)
        num_identified = sum(num_held_by.values()) - num_held_by.get(ANONYMOUS, 0)
        return max(1, self.total - max(self.max_per_principal, num_identified))

    def judge(self, principal: str, num_wanted: int, num_held_by: Mapping[str, int]) -> Verdict:
        """Decide on a request for so many places at once; it gets all of them or none."""
        if num_wanted > self.share_of(principal, {}):
            return Verdict.NEVER
        if sum(num_held_by.values()) + num_wanted > self.total:
            return Verdict.SATURATED
        num_held = num_held_by.get(principal, 0)
        if num_held + num_wanted > self.share_of(principal, num_held_by):
            return Verdict.OVER_SHARE
        return Verdict.ADMITTED


def retry_after_seconds(mean_request_seconds: float, num_ahead: int, max_in_flight: int) -> int:
    """Return when a place should be free: so many requests ahead, so many of them at a time.

    Clamped to 1..60 s: an estimate from few requests is not worth more.
    """
    seconds = mean_request_seconds * num_ahead / max_in_flight
    return max(1, min(MAX_RETRY_SECONDS, math.ceil(seconds)))
