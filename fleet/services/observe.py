"""What polls found, into rows: the neuron, its devices, and by `observe_models` its models.

Rows that did not change are not written, but for the devices' time of observation, which
decisions about memory rest on.
"""

from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction

from fleet.models import Device, Neuron
from fleet.observation import Report
from fleet.planner.phases import NeuronPhase
from fleet.services.events import record_neuron_event
from fleet.services.moves import move_neuron
from fleet.services.observe_models import differences, record_models
from neuron_agent import protocol

MISSES_UNTIL_UNHEALTHY = 3
_MB = 2**20
_ERROR_LIMIT = Neuron._meta.get_field("last_error").max_length or 500
_SEEN_RESOLUTION_SECONDS = 5.0


def record_report(neuron_id: int, report: Report, now: datetime) -> bool:
    """Write what a neuron said; False if it was deleted meanwhile."""
    with transaction.atomic():
        neuron = Neuron.objects.filter(pk=neuron_id).first()
        if neuron is None:
            return False
        is_new_boot = neuron.boot_id not in ("", report.health.boot_id)
        if is_new_boot:
            record_neuron_event(neuron, f"{neuron.name} was restarted", now)
        if report.discovery is not None:
            _record_hardware(neuron, report.discovery)
        _record_devices(neuron, report.health, report.asked_at)
        _record_neuron(neuron, report, now)
        record_models(neuron, report, is_new_boot, now)
    return True


def record_miss(neuron_id: int, error: str, now: datetime) -> bool:
    """A poll failed: unhealthy after three in a row, lost after the lease."""
    with transaction.atomic():
        neuron = Neuron.objects.filter(pk=neuron_id).first()
        if neuron is None:
            return False
        neuron.num_missed_polls += 1
        changes = {
            "num_missed_polls": neuron.num_missed_polls,
            "last_error": error[:_ERROR_LIMIT],
        }
        phase = _phase_after_miss(neuron, now)
        if phase == neuron.phase:
            Neuron.objects.filter(pk=neuron.pk).update(**changes)
            return True
        return move_neuron(neuron, phase, error, now, changes=changes)


def _phase_after_miss(neuron: Neuron, now: datetime) -> NeuronPhase:
    lease = timedelta(seconds=settings.CORTEX_NEURON_LOST_SECONDS)
    current = NeuronPhase(neuron.phase)
    if (
        current is not NeuronPhase.HEALTHY
        and now - (neuron.last_seen_at or neuron.created_at) >= lease
    ):
        return NeuronPhase.LOST
    if current in (NeuronPhase.UNHEALTHY, NeuronPhase.LOST):
        return current
    return NeuronPhase.UNHEALTHY if neuron.num_missed_polls >= MISSES_UNTIL_UNHEALTHY else current


def _record_neuron(neuron: Neuron, report: Report, now: datetime) -> None:
    observed: dict[str, Any] = {
        "boot_id": report.health.boot_id,
        "lifecycle_cycles": report.health.lifecycle_cycles,
        "faults": _as_json(report.health.faults),
        "num_missed_polls": 0,
        "last_error": "",
    }
    if report.discovery is not None:
        observed |= _hardware_columns(report.discovery)
    if report.version is not None:
        observed["version"] = report.version.version
    changes = differences(neuron, observed)
    is_stale = (
        neuron.last_seen_at is None
        or (now - neuron.last_seen_at).total_seconds() >= _seen_resolution_seconds()
    )
    if changes or is_stale:
        changes["last_seen_at"] = report.asked_at
    # What it said before a gateway found it unreachable is no sign of health.
    is_older = neuron.phase_since is not None and neuron.phase_since > report.asked_at
    if neuron.phase != NeuronPhase.HEALTHY and not is_older:
        changes["last_seen_at"] = report.asked_at
        move_neuron(neuron, NeuronPhase.HEALTHY, "it answered", now, changes=changes)
    elif changes:
        Neuron.objects.filter(pk=neuron.pk).update(**changes)


def _seen_resolution_seconds() -> float:
    """How old `last_seen_at` may get while polls succeed: far less than the lease."""
    return min(_SEEN_RESOLUTION_SECONDS, settings.CORTEX_NEURON_LOST_SECONDS / 4)


def _hardware_columns(discovery: protocol.Discovery) -> dict[str, Any]:
    return {
        "hostname": discovery.hostname,
        "driver": discovery.driver or "",
        "cuda": discovery.cuda or "",
        "cuda_unavailable_reason": discovery.cuda_unavailable_reason or "",
        "harnesses": list(discovery.harnesses),
        "models_on_disk": [model.id for model in discovery.cached_models],
    }


def _record_hardware(neuron: Neuron, discovery: protocol.Discovery) -> None:
    indexes = [facts.index for facts in discovery.devices]
    Device.objects.filter(neuron=neuron).exclude(index__in=indexes).delete()
    for facts in discovery.devices:
        Device.objects.update_or_create(
            neuron=neuron,
            index=facts.index,
            defaults={
                "name": facts.name,
                "kind": facts.kind,
                "total_bytes": facts.vram_total_mb * _MB,
                "compute_capability": facts.compute_capability or "",
            },
        )


def _record_devices(neuron: Neuron, health: protocol.Health, asked_at: datetime) -> None:
    devices = {device.index: device for device in Device.objects.filter(neuron=neuron)}
    observed = []
    for reported in health.devices:
        device = devices.get(reported.index)
        if device is None:  # the next boot id brings its facts
            continue
        for name, value in _device_columns(reported).items():
            setattr(device, name, value)
        device.observed_at = asked_at
        observed.append(device)
    columns = [*_device_columns(health.devices[0]), "observed_at"] if observed else []
    if columns:
        Device.objects.bulk_update(observed, columns)


def _device_columns(reported: protocol.DeviceHealth) -> dict[str, Any]:
    trouble = _trouble(reported)
    return {
        "used_bytes": reported.vram_used_mb * _MB,
        "free_bytes": reported.vram_free_mb * _MB,
        "utilization_pct": reported.utilization_pct,
        "temp_c": reported.temp_c,
        "power_w": reported.power_w,
        "usable": not trouble,
        "trouble": trouble,
    }


def _as_json(value: object) -> Any:
    """As the column gives it back, so that the same is seen to be the same."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _trouble(reported: protocol.DeviceHealth) -> str:
    if reported.given_up:
        return "given up"
    if reported.restarting:
        return "restarting"
    if reported.hung:
        return "hung"
    return "poisoned" if reported.poisoned else ""
