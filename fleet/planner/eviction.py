"""Who must stop so that a newcomer fits, and why somebody need not.

It does not know which neuron is best, nor what the newcomer is for beyond its rights: it is
told how many bytes each device lacks.

A placement that requests wait to displace may still be given new ones, until they have waited
too long: that is for dispatch to end. Here a victim is simply idle.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from fleet.planner.phases import PlacementPhase
from fleet.planner.snapshot import EvictionStrategy, FleetSnapshot, PlacementView, ProfileView
from fleet.planner.wanted import is_waited_for, num_to_keep, staying_placements

OrderKey = tuple[float, datetime, int]
"""Sorts placements: the one that is missed least comes first."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    profile: ProfileView
    is_standing: bool = False
    """Wanted for its `min_placements` and not because anybody waits for it."""


def choose_victims(
    lacking_bytes: Mapping[int, int], candidates: Sequence[PlacementView]
) -> tuple[PlacementView, ...] | None:
    """Return the placements to stop, first candidates first; None if all do not suffice.

    `lacking_bytes` is what each device (by index) lacks; nothing or less is enough.

    1. Take candidates in order until the newcomer fits.
    2. Spare every victim the fit does not need, the one missed most first: a large late one
       often makes the small early ones unnecessary, and an eviction costs a reload.
    """
    victims: list[PlacementView] = []
    for candidate in candidates:  # 1
        if _suffice(victims, lacking_bytes):
            break
        if any(lacking_bytes.get(index, 0) > 0 for index in candidate.device_indexes):
            victims.append(candidate)
    if not _suffice(victims, lacking_bytes):
        return None
    for victim in reversed(tuple(victims)):  # 2
        others = [other for other in victims if other is not victim]
        if _suffice(others, lacking_bytes):
            victims = others
    return tuple(victims)


def freed_bytes(index: int, victims: Iterable[PlacementView]) -> int:
    """What stopping `victims` gives back on the device with this index."""
    return sum(victim.bytes_per_device for victim in victims if index in victim.device_indexes)


def may_displace(newcomer: Newcomer, victim: PlacementView, snapshot: FleetSnapshot) -> bool:
    """Whether the newcomer's rights reach so far, no matter what the victim is doing now.

    A standing wish displaces nothing that is waited for, and what another standing wish keeps
    only if that ranks lower: two of equal rank would displace each other for ever.
    """
    profile = snapshot.profile(victim.model_id)
    if profile.pinned or profile.residency_priority > newcomer.profile.residency_priority:
        return False
    if not newcomer.is_standing:
        return True
    if is_waited_for(victim.model_id, snapshot):
        return False
    is_spare = len(staying_placements(victim.model_id, snapshot)) > num_to_keep(profile)
    return is_spare or profile.residency_priority < newcomer.profile.residency_priority


def is_evictable_now(victim: PlacementView, snapshot: FleetSnapshot) -> bool:
    """Ready, idle, and resident for long enough."""
    if victim.phase is not PlacementPhase.READY or not victim.idle:
        return False
    return snapshot.now - (victim.ready_at or victim.phase_since) >= snapshot.policy.min_residency


def eviction_order(victim: PlacementView, snapshot: FleetSnapshot) -> OrderKey:
    """Return the sort key of the operator's strategy; ties go to the least recently used."""
    profile = snapshot.profile(victim.model_id)
    match snapshot.policy.eviction_strategy:
        case EvictionStrategy.LRU:
            first = 0.0
        case EvictionStrategy.PRIORITY:
            first = float(profile.residency_priority)
        case EvictionStrategy.COST:
            first = (profile.reload_seconds or 0.0) * profile.recent_requests
        case strategy:
            assert_never(strategy)
    return first, last_used_at(victim), victim.id


def last_used_at(placement: PlacementView) -> datetime:
    """When it last had work; one that never had counts from when it became ready."""
    moments = [at for at in (placement.last_used_at, placement.ready_at) if at is not None]
    return max(moments, default=placement.phase_since)


def _suffice(victims: Iterable[PlacementView], lacking_bytes: Mapping[int, int]) -> bool:
    victims = tuple(victims)
    return all(freed_bytes(index, victims) >= lack for index, lack in lacking_bytes.items())
