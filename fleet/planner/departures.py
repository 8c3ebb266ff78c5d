"""The rules by which placements end, other than to make room for a newcomer.

Each reads the draft's snapshot and decides on single placements. They know nothing of what is
wanted beyond what must be kept.
"""

from datetime import datetime

from fleet.planner.actions import Fail, MarkLost, Unload, UnloadReason
from fleet.planner.draft import Draft
from fleet.planner.eviction import last_used_at
from fleet.planner.phases import ARRIVING, OCCUPYING, NeuronPhase, PlacementPhase
from fleet.planner.snapshot import FleetSnapshot, PlacementView
from fleet.planner.wanted import (
    STAYING,
    is_waited_for,
    num_to_keep,
    on_healthy_neurons,
    staying_placements,
)


def mark_lost(draft: Draft) -> None:
    """A neuron not heard of past the lease takes its placements with it."""
    for placement in draft.snapshot.placements:
        neuron = draft.snapshot.neuron(placement.neuron_id)
        if placement.phase not in OCCUPYING:
            continue
        if neuron is None:
            draft.decide(MarkLost(placement.id, "its neuron is no longer part of the fleet"))
        elif neuron.phase is NeuronPhase.LOST:
            draft.decide(MarkLost(placement.id, f"{neuron.name} has not been heard of"))


def fail_stalled(draft: Draft) -> None:
    """A load may take long, but it must move."""
    for placement in draft.snapshot.placements:
        if placement.phase not in ARRIVING:
            continue
        still = draft.snapshot.now - _moved_at(placement)
        if still >= draft.snapshot.policy.load_stall:
            seconds = int(still.total_seconds())
            draft.decide(Fail(placement.id, f"no progress for {seconds} s ({placement.phase})"))


def _moved_at(placement: PlacementView) -> datetime:
    return max(placement.phase_since, placement.progress_at or placement.phase_since)


def unload_what_must_go(draft: Draft) -> None:
    """What an operator removed goes, and all that is on a draining or disabled neuron.

    What is lost goes too: nothing will be heard of it, and its row would keep a dead neuron and
    its models from being removed.
    """
    for placement in draft.snapshot.placements:
        neuron = draft.snapshot.neuron(placement.neuron_id)
        if placement.phase not in STAYING | {PlacementPhase.LOST} or neuron is None:
            continue
        if not placement.desired_present:
            reason, detail = UnloadReason.OPERATOR, "an operator unloads it"
        elif neuron.draining:
            reason, detail = UnloadReason.DRAINED, f"{neuron.name} is being drained"
        elif not neuron.enabled:
            reason, detail = UnloadReason.DRAINED, f"{neuron.name} is disabled"
        else:
            continue
        draft.decide(Unload(placement.id, reason, detail, only_if_idle=False))


def withdraw_unwanted(draft: Draft) -> None:
    """A load that nobody wants any more is not started."""
    for placement in draft.snapshot.placements:
        if (
            placement.phase is PlacementPhase.PENDING
            and not is_waited_for(placement.model_id, draft.snapshot)
            and num_to_keep(draft.snapshot.profile(placement.model_id)) == 0
        ):
            detail = "those who waited for it left before it began"
            draft.decide(Unload(placement.id, UnloadReason.UNWANTED, detail, only_if_idle=False))


def unload_idle(draft: Draft) -> None:
    """What was not used for `idle_ttl` goes, but never below `min_placements`."""
    for placement in _idle_ones(draft.snapshot):
        profile = draft.snapshot.profile(placement.model_id)
        if profile.idle_ttl is None or profile.pinned:
            continue
        idle_for = draft.snapshot.now - last_used_at(placement)
        staying = staying_placements(placement.model_id, draft.snapshot)
        num_healthy = len(on_healthy_neurons(staying, draft.snapshot))
        if (
            idle_for >= profile.idle_ttl
            and num_healthy > num_to_keep(profile)
            and not is_waited_for(placement.model_id, draft.snapshot)
        ):
            detail = f"idle for {int(idle_for.total_seconds())} s"
            draft.decide(Unload(placement.id, UnloadReason.IDLE, detail, only_if_idle=True))


def unload_surplus(draft: Draft) -> None:
    """What is over `max_placements` goes, least recently used first, when it is idle."""
    for placement in _idle_ones(draft.snapshot):
        profile = draft.snapshot.profile(placement.model_id)
        if profile.max_placements is None:
            continue
        staying = staying_placements(placement.model_id, draft.snapshot)
        num_ready = sum(
            other.phase is PlacementPhase.READY
            for other in on_healthy_neurons(staying, draft.snapshot)
        )
        if num_ready > profile.max_placements:
            detail = f"{num_ready} placements, at most {profile.max_placements}"
            draft.decide(Unload(placement.id, UnloadReason.SURPLUS, detail, only_if_idle=True))


def _idle_ones(snapshot: FleetSnapshot) -> list[PlacementView]:
    ready = (p for p in snapshot.placements if p.phase is PlacementPhase.READY and p.idle)
    return sorted(
        on_healthy_neurons(ready, snapshot),
        key=lambda placement: (last_used_at(placement), placement.id),
    )
