"""Which ready placement gets a request: filter, score, pick. Values in, a value out.

It knows no clock, no neuron and no connection: who asks says how busy each candidate is.
"""

from collections.abc import Iterable, Set
from typing import NamedTuple

from fleet.planner.phases import PlacementPhase


class Candidate(NamedTuple):
    """A placement of the model a request asks for, as this gateway sees it now."""

    placement_id: int
    phase: PlacementPhase
    desired_present: bool
    servable: bool
    neuron_dispatchable: bool
    """Enabled, healthy and not draining."""
    breaker_closed: bool
    must_yield: bool
    """Others have waited long for its memory: it is to become idle."""
    load: int
    """In-flight and queued: the last poll's, and what this gateway has sent since."""


def is_eligible(candidate: Candidate) -> bool:
    return (
        candidate.phase is PlacementPhase.READY
        and candidate.desired_present
        and candidate.servable
        and candidate.neuron_dispatchable
        and candidate.breaker_closed
        and not candidate.must_yield
    )


def pick_placement(candidates: Iterable[Candidate], excluded: Set[int] = frozenset()) -> int | None:
    """Return the id of the least busy eligible placement, the lowest id of equals; None if none."""
    eligible = (
        (candidate.load, candidate.placement_id)
        for candidate in candidates
        if candidate.placement_id not in excluded and is_eligible(candidate)
    )
    best = min(eligible, default=None)
    return None if best is None else best[1]
