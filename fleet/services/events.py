"""Writes the fleet's history: one row for each change of phase and each decision.

It is called inside the transaction that makes the change, and never judges it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fleet.models import EventKind, FleetEvent, Neuron, Placement

_MESSAGE_LIMIT = FleetEvent._meta.get_field("message").max_length or 500


def record_event(
    kind: EventKind,
    message: str,
    now: datetime,
    *,
    model: str = "",
    neuron: str = "",
    placement: int | None = None,
    data: Mapping[str, Any] | None = None,
    actor: str = "",
) -> None:
    FleetEvent.objects.create(
        at=now,
        kind=kind,
        model=model,
        neuron=neuron,
        placement=placement,
        message=message[:_MESSAGE_LIMIT],
        data=dict(data or {}),
        actor=actor,
    )


def record_placement_event(
    placement: Placement,
    kind: EventKind,
    message: str,
    now: datetime,
    data: Mapping[str, Any] | None = None,
    actor: str = "",
) -> None:
    record_event(
        kind,
        message,
        now,
        model=placement.profile.model_id,
        neuron=placement.neuron.name,
        placement=placement.pk,
        data=data,
        actor=actor,
    )


def record_neuron_event(
    neuron: Neuron,
    message: str,
    now: datetime,
    data: Mapping[str, Any] | None = None,
    kind: EventKind = EventKind.NEURON,
    actor: str = "",
) -> None:
    record_event(kind, message, now, neuron=neuron.name, data=data, actor=actor)
