"""What a neuron's report says of its models, into the rows of placements and of the catalogue.

What a report means is decided by `observation.merge_report`. Rows that did not change are not
written.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, assert_never

from django.db import IntegrityError, transaction
from django.db.models import Model

from fleet import metrics
from fleet.models import Cooldown, EventKind, ModelProfile, Neuron, Placement
from fleet.notify import publish_fleet_changed
from fleet.observation import (
    Change,
    Found,
    Gone,
    Interrupted,
    Known,
    Report,
    Seen,
    merge_report,
)
from fleet.planner.phases import ENDED, LEAVING, LIVE, PlacementPhase
from fleet.services.events import record_placement_event
from fleet.services.failures import LOAD_INTERRUPTED, Failure, fail_placement
from fleet.services.moves import move_placement
from neuron_agent import protocol

_MB = 2**20
_KEEP_OF_OLD_MEAN = 0.7
_FIRST_LOAD = frozenset({PlacementPhase.PENDING, PlacementPhase.LOADING, PlacementPhase.WARMING})


def record_models(neuron: Neuron, report: Report, is_new_boot: bool, now: datetime) -> None:
    """Bring the neuron's placements to what it reported."""
    for change in _compare(neuron, report, is_new_boot):
        _record_change(neuron, change, now)


def _compare(neuron: Neuron, report: Report, is_new_boot: bool) -> tuple[Change, ...]:
    placements = Placement.objects.filter(neuron=neuron)
    known = [
        Known(pk, model_id, PlacementPhase(phase), phase_since, ready_at is not None)
        for pk, model_id, phase, phase_since, ready_at in placements.filter(
            phase__in=sorted(LIVE)
        ).values_list("pk", "profile__model_id", "phase", "phase_since", "ready_at")
    ]
    just_ended = placements.filter(phase__in=sorted(ENDED), ended_at__gt=report.asked_at)
    return merge_report(
        known,
        frozenset(just_ended.values_list("profile__model_id", flat=True)),
        report,
        is_new_boot,
    )


def _record_change(neuron: Neuron, change: Change, now: datetime) -> None:
    match change:
        case Seen(placement_id, info, load, move_to):
            placement = _placement(placement_id)
            if move_to is PlacementPhase.FAILED:
                fail_placement(placement, _failure(info), now)
            else:
                _record_seen(placement, info, load, move_to, now)
        case Gone(placement_id, reason):
            changes = {"in_flight": 0, "queued": 0}
            placement = _placement(placement_id)
            move_placement(placement, PlacementPhase.STOPPED, reason, now, changes=changes)
        case Interrupted(placement_id, reason):
            failure = Failure(LOAD_INTERRUPTED, f"the load ended half-way: {reason}")
            fail_placement(_placement(placement_id), failure, now)
        case Found(info, load, phase):
            _adopt(neuron, info, load, phase, now)
        case _:
            assert_never(change)


def _record_seen(
    placement: Placement,
    info: protocol.ModelInfo,
    load: protocol.ModelHealth | None,
    move_to: PlacementPhase | None,
    now: datetime,
) -> None:
    observed = _observed_columns(placement, info, load)
    is_ready_now = move_to is PlacementPhase.READY
    if is_ready_now:
        observed |= _ready_columns(placement, info, now)
    changes = differences(placement, observed)
    if {"stage", "percent"} & changes.keys():
        changes["progress_at"] = now
    if move_to is not None:
        was_loading = PlacementPhase(placement.phase) in _FIRST_LOAD
        moved = move_placement(placement, move_to, "", now, changes=changes)
        if moved and is_ready_now:
            _learn_from(placement, info, was_loading)
    elif changes:
        changes["observed_at"] = now
        unchanged = Placement.objects.filter(pk=placement.pk, generation=placement.generation)
        unchanged.update(**changes)
        publish_fleet_changed()


def _observed_columns(
    placement: Placement, info: protocol.ModelInfo, load: protocol.ModelHealth | None
) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "in_flight": load.in_flight if load else 0,
        "queued": load.queue_depth if load else 0,
        "servable": info.servable.ok,
        "unservable_reason": info.servable.reason or "",
    }
    if info.devices:
        columns["device_indexes"] = list(info.devices)
    if info.phase in (protocol.ModelPhase.DRAINING, protocol.ModelPhase.UNLOADING):
        columns["stage"] = info.phase.value
    elif placement.phase in LEAVING:
        columns["stage"] = ""  # the order to leave was not taken, or was forgotten: not so far yet
    elif info.progress is not None:
        columns |= {"stage": info.progress.stage, "percent": info.progress.percent}
    return columns


def _ready_columns(placement: Placement, info: protocol.ModelInfo, now: datetime) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "ready_at": now,
        "stage": "",
        "percent": 100.0,
        "load_seconds": info.load_seconds,
        "error": "",
        "error_code": "",
    }
    if info.vram_used_mb is not None:
        columns |= {"memory_bytes": info.vram_used_mb * _MB, "memory_measured": True}
    return columns


def _learn_from(placement: Placement, info: protocol.ModelInfo, was_loading: bool) -> None:
    """What the next load of this model should know."""
    profile = ModelProfile.objects.get(pk=placement.profile_id)
    learned: dict[str, Any] = {
        "capabilities": list(info.capabilities),
        "tool_call": info.tool_call,
        "reasoning": info.reasoning,
    }
    if info.limit is not None:
        learned |= {
            "limit_context": info.limit.context,
            "limit_input": info.limit.input,
            "limit_output": info.limit.output,
        }
    needed_mb = info.vram_used_mb if info.needed_mb is None else info.needed_mb
    if needed_mb is not None:
        learned |= {
            "learned_bytes": needed_mb * _MB,
            "learned_for": profile.options_key,
        }
    if info.load_seconds is not None and was_loading:
        learned["load_seconds"] = _mean(profile.load_seconds, info.load_seconds)
        transaction.on_commit(partial(metrics.observe_load, profile.model_id, info.load_seconds))
    changes = differences(profile, learned)
    if changes:
        ModelProfile.objects.filter(pk=profile.pk).update(**changes)
    Cooldown.objects.filter(profile=profile, neuron_id=placement.neuron_id).delete()
    _note_on_disk(placement)


def _note_on_disk(placement: Placement) -> None:
    """The hardware is read at a neuron's start only; this load fetched the weights since."""
    neuron = Neuron.objects.get(pk=placement.neuron_id)
    if placement.profile.model_id not in neuron.models_on_disk:
        on_disk = [*neuron.models_on_disk, placement.profile.model_id]
        Neuron.objects.filter(pk=neuron.pk).update(models_on_disk=on_disk)


def _mean(old_seconds: float | None, new_seconds: float) -> float:
    if old_seconds is None:
        return new_seconds
    return _KEEP_OF_OLD_MEAN * old_seconds + (1 - _KEEP_OF_OLD_MEAN) * new_seconds


def _adopt(
    neuron: Neuron,
    info: protocol.ModelInfo,
    load: protocol.ModelHealth | None,
    phase: PlacementPhase,
    now: datetime,
) -> None:
    """Give a row to a model that is there without one, so that it is counted and served."""
    profile, _ = ModelProfile.objects.get_or_create(
        model_id=info.id,
        defaults={"discovered": True, "harness": info.harness, "quant": info.quant or ""},
    )
    placement = Placement(
        profile=profile,
        neuron=neuron,
        phase=phase,
        phase_since=now,
        requested_at=now,
        progress_at=now,
        device_indexes=list(info.devices),
        memory_bytes=(info.vram_used_mb or 0) * _MB,
        reason="found on the neuron",
    )
    is_ready = phase is PlacementPhase.READY
    observed = _observed_columns(placement, info, load)
    if is_ready:
        observed |= _ready_columns(placement, info, now)
    for name, value in differences(placement, observed).items():
        setattr(placement, name, value)
    try:
        with transaction.atomic():
            placement.save(force_insert=True)
    except IntegrityError:  # a pass began to load it just now
        return
    message = f"{info.id} found on {neuron.name}, {phase}"
    record_placement_event(placement, EventKind.PHASE, message, now, {"to": phase})
    if is_ready:
        _learn_from(placement, info, was_loading=False)
    publish_fleet_changed()


def _failure(info: protocol.ModelInfo) -> Failure:
    reported = info.failure
    if reported is None:
        return Failure(protocol.ErrorCode.LOAD_FAILED, "the neuron did not say why")
    return Failure(
        reported.code, reported.message, reported.hint, reported.needed_mb, reported.free_mb
    )


def _placement(placement_id: int) -> Placement:
    return Placement.objects.select_related("profile", "neuron").get(pk=placement_id)


def differences(row: Model, observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns in which a row is not as observed; texts are cut to their column."""
    changes = {}
    for name, value in observed.items():
        limit = getattr(row._meta.get_field(name), "max_length", None)
        fitting = value[:limit] if isinstance(value, str) else value
        if getattr(row, name) != fitting:
            changes[name] = fitting
    return changes
