"""What a neuron's report means for the placements on record: rows and report in, changes out.

It reads no clock, no network and no database. A report speaks of the moment the neuron was asked,
so it says nothing about a placement that changed after that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from fleet.planner.phases import ARRIVING, PLACEMENT_MOVES, PlacementPhase
from neuron_agent.protocol import (
    Discovery,
    Health,
    ModelHealth,
    ModelInfo,
    ModelPhase,
    VersionInfo,
)

_P = PlacementPhase
_M = ModelPhase

_ADOPTED = frozenset({_M.LOADING, _M.WARMING, _M.READY, _M.RECOVERING})
"""A model found in these phases gets a row; one that is on its way out, or failed, needs none."""

_STANDING: Mapping[PlacementPhase, frozenset[ModelPhase]] = {
    # Not told yet, as far as we know; what failed there before is not this load.
    _P.PENDING: frozenset({_M.FAILED, _M.DRAINING, _M.UNLOADING}),
    _P.WARMING: frozenset({_M.LOADING}),
    _P.RECOVERING: frozenset({_M.LOADING}),
    # The order to leave is on its way, or is given again later: these are no return.
    _P.DRAINING: frozenset({_M.LOADING, _M.WARMING, _M.READY, _M.RECOVERING}),
    _P.UNLOADING: frozenset({_M.LOADING, _M.WARMING, _M.READY, _M.RECOVERING, _M.DRAINING}),
}
"""Reports that do not move a placement in this phase."""

_INSTEAD: Mapping[tuple[PlacementPhase, ModelPhase], PlacementPhase] = {
    # Its device process was replaced between two polls.
    (_P.READY, _M.LOADING): _P.RECOVERING,
    (_P.READY, _M.WARMING): _P.RECOVERING,
    # Somebody else told the neuron to unload.
    (_P.READY, _M.UNLOADING): _P.DRAINING,
    (_P.LOADING, _M.DRAINING): _P.UNLOADING,
    (_P.WARMING, _M.DRAINING): _P.UNLOADING,
    (_P.RECOVERING, _M.DRAINING): _P.UNLOADING,
    (_P.LOST, _M.DRAINING): _P.STOPPED,
    (_P.LOST, _M.UNLOADING): _P.STOPPED,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a neuron said of itself when it was asked."""

    asked_at: datetime
    health: Health
    models: tuple[ModelInfo, ...]
    discovery: Discovery | None = None
    """Only after a new boot id; `version` likewise."""
    version: VersionInfo | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A live placement on record."""

    id: int
    model_id: str
    phase: PlacementPhase
    phase_since: datetime
    was_ready: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """The neuron has the model; `move_to` is None when the phase stands."""

    placement_id: int
    info: ModelInfo
    load: ModelHealth | None
    move_to: PlacementPhase | None


@dataclass(frozen=True, slots=True)
class Gone:
    """The neuron does not have the model any more."""

    placement_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The neuron does not have the model any more, though it was to load it."""

    placement_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """The neuron has a model nobody here asked for."""

    info: ModelInfo
    load: ModelHealth | None
    phase: PlacementPhase


Change = Seen | Gone | Interrupted | Found


def observed_phase(current: PlacementPhase, reported: ModelPhase) -> PlacementPhase | None:
    """Return the phase a report moves a placement to, None if it stays as it is."""
    if reported in _STANDING.get(current, frozenset()):
        return None
    target = _INSTEAD.get((current, reported), PlacementPhase(reported.value))
    return target if target in PLACEMENT_MOVES[current] else None


def merge_report(
    known: Iterable[Known],
    just_ended: frozenset[str],
    report: Report,
    is_new_boot: bool,
) -> tuple[Change, ...]:
    """Compare what is on record with what the neuron has.

    `just_ended` are models whose placement here ended after the neuron was asked: that they were
    still there is no news.
    """
    infos = {info.id: info for info in report.models}
    loads = {load.id: load for load in report.health.models}
    changes: list[Change] = []
    recorded = set()
    for placement in known:
        recorded.add(placement.model_id)
        if placement.phase_since > report.asked_at:
            continue
        info = infos.get(placement.model_id)
        if info is not None:
            move_to = observed_phase(placement.phase, info.phase)
            changes.append(Seen(placement.id, info, loads.get(info.id), move_to))
        elif placement.phase is not _P.PENDING:
            reason = _why_gone(placement.phase, is_new_boot)
            kind = Interrupted if _was_to_become_ready(placement) else Gone
            changes.append(kind(placement.id, reason))
    for model_id in sorted(infos.keys() - recorded - just_ended):
        info = infos[model_id]
        if info.phase in _ADOPTED:
            changes.append(Found(info, loads.get(model_id), PlacementPhase(info.phase.value)))
    return tuple(changes)


def _was_to_become_ready(placement: Known) -> bool:
    """Such an end is a failure: a load that brings its neuron down must not go on for ever."""
    if placement.phase is _P.LOST:
        return not placement.was_ready
    return placement.phase in ARRIVING


def _why_gone(phase: PlacementPhase, is_new_boot: bool) -> str:
    if phase is _P.UNLOADING or phase is _P.DRAINING:
        return "unloaded"
    if phase is _P.LOST:
        return "the neuron came back without it"
    return "the neuron was restarted" if is_new_boot else "gone from the neuron"
