"""The only place where a phase changes: by compare-and-set, with the event that says why.

It does not decide moves, it makes them: whoever comes second finds the row changed, does nothing
and is told so.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F

from fleet.models import EventKind, Neuron, Placement
from fleet.notify import publish_fleet_changed
from fleet.planner.phases import (
    ENDED,
    NeuronPhase,
    PlacementPhase,
    check_neuron_move,
    check_placement_move,
)
from fleet.services.events import record_neuron_event, record_placement_event

_REASON_LIMIT = Placement._meta.get_field("reason").max_length or 300


def move_placement(
    placement: Placement,
    new: PlacementPhase,
    reason: str,
    now: datetime,
    *,
    data: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    actor: str = "",
) -> bool:
    """Bring a placement from the phase it was read in to `new`; False if it changed meanwhile.

    `changes` are columns written with it. On success the instance is as the row is now.
    Raises IllegalMove for a move the table of phases does not have.
    """
    old = PlacementPhase(placement.phase)
    check_placement_move(old, new)
    columns = {
        "phase": new,
        "phase_since": now,
        "reason": reason[:_REASON_LIMIT],
        **({"ended_at": now} if new in ENDED else {}),
        **(changes or {}),
    }
    with transaction.atomic():
        unchanged = Placement.objects.filter(
            pk=placement.pk, phase=old, generation=placement.generation
        )
        if not unchanged.update(generation=F("generation") + 1, **columns):
            return False
        for name, value in columns.items():
            setattr(placement, name, value)
        placement.generation += 1
        facts = {"from": old, "to": new, "reason": reason, **(data or {})}
        message = f"{placement.profile.model_id} on {placement.neuron.name}: {old} -> {new}"
        message += f" ({reason})" if reason else ""
        record_placement_event(placement, EventKind.PHASE, message, now, facts, actor)
        publish_fleet_changed()
    return True


def move_neuron(
    neuron: Neuron,
    new: NeuronPhase,
    reason: str,
    now: datetime,
    *,
    changes: Mapping[str, Any] | None = None,
) -> bool:
    """Bring a neuron from the phase it was read in to `new`; False if it changed meanwhile."""
    old = NeuronPhase(neuron.phase)
    check_neuron_move(old, new)
    columns = {"phase": new, "phase_since": now, **(changes or {})}
    with transaction.atomic():
        if not Neuron.objects.filter(pk=neuron.pk, phase=old).update(**columns):
            return False
        for name, value in columns.items():
            setattr(neuron, name, value)
        message = f"{neuron.name}: {old} -> {new}" + (f" ({reason})" if reason else "")
        record_neuron_event(neuron, message, now, {"from": old, "to": new, "reason": reason})
        publish_fleet_changed()
    return True
