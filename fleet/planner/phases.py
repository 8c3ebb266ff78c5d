"""The phases a placement and a neuron can be in, and the moves allowed between them.

It does not know who moves what, or why: that is a rule's business, and a service's to record.
"""

from collections.abc import Mapping
from enum import StrEnum


class IllegalMove(ValueError):
    """A change of phase the table does not allow: a bug in a rule, never a fleet state."""


class PlacementPhase(StrEnum):
    PENDING = "pending"
    """Decided and its memory reserved; the neuron has not been told yet."""
    LOADING = "loading"
    WARMING = "warming"
    """Weights are there; the canary token is on its way."""
    READY = "ready"
    RECOVERING = "recovering"
    """Its device process is being replaced."""
    DRAINING = "draining"
    """Gets nothing new; what runs may finish."""
    UNLOADING = "unloading"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"
    """Its neuron has not been heard of past the lease."""


class NeuronPhase(StrEnum):
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    LOST = "lost"


_P = PlacementPhase
_N = NeuronPhase

PLACEMENT_MOVES: Mapping[PlacementPhase, frozenset[PlacementPhase]] = {
    _P.PENDING: frozenset({_P.LOADING, _P.WARMING, _P.READY, _P.STOPPED, _P.FAILED, _P.LOST}),
    _P.LOADING: frozenset(
        {_P.WARMING, _P.READY, _P.RECOVERING, _P.UNLOADING, _P.STOPPED, _P.FAILED, _P.LOST}
    ),
    _P.WARMING: frozenset({_P.READY, _P.RECOVERING, _P.UNLOADING, _P.STOPPED, _P.FAILED, _P.LOST}),
    _P.READY: frozenset({_P.RECOVERING, _P.DRAINING, _P.STOPPED, _P.FAILED, _P.LOST}),
    _P.RECOVERING: frozenset({_P.WARMING, _P.READY, _P.UNLOADING, _P.STOPPED, _P.FAILED, _P.LOST}),
    # Back to ready: the neuron refused an eviction because a request had come in meanwhile.
    _P.DRAINING: frozenset({_P.READY, _P.UNLOADING, _P.STOPPED, _P.FAILED, _P.LOST}),
    _P.UNLOADING: frozenset({_P.STOPPED, _P.FAILED, _P.LOST}),
    # A lost neuron that comes back may still hold the model.
    _P.LOST: frozenset({_P.READY, _P.LOADING, _P.WARMING, _P.RECOVERING, _P.STOPPED, _P.FAILED}),
    _P.STOPPED: frozenset(),
    _P.FAILED: frozenset(),
}

NEURON_MOVES: Mapping[NeuronPhase, frozenset[NeuronPhase]] = {
    _N.UNKNOWN: frozenset({_N.HEALTHY, _N.UNHEALTHY, _N.LOST}),
    _N.HEALTHY: frozenset({_N.UNHEALTHY, _N.LOST}),
    _N.UNHEALTHY: frozenset({_N.HEALTHY, _N.LOST}),
    _N.LOST: frozenset({_N.HEALTHY}),
}

ENDED = frozenset({_P.STOPPED, _P.FAILED})
"""Nothing moves a placement from here; its row is history."""

LIVE = frozenset(_P) - ENDED
"""The row still stands for something wanted or running; one per model and neuron at most."""

OCCUPYING = LIVE - {_P.LOST}
"""Takes memory on its devices, or has it reserved."""

ARRIVING = frozenset({_P.PENDING, _P.LOADING, _P.WARMING, _P.RECOVERING})
"""Will be ready without anyone doing anything."""

LEAVING = frozenset({_P.DRAINING, _P.UNLOADING})
"""Its memory is on its way back."""


def check_placement_move(old: PlacementPhase, new: PlacementPhase) -> None:
    """Raise IllegalMove unless a placement may go from `old` to `new`."""
    if new not in PLACEMENT_MOVES[old]:
        raise IllegalMove(f"placement: {old} -> {new}")


def check_neuron_move(old: NeuronPhase, new: NeuronPhase) -> None:
    """Raise IllegalMove unless a neuron may go from `old` to `new`."""
    if new not in NEURON_MOVES[old]:
        raise IllegalMove(f"neuron: {old} -> {new}")
