"""The frozen picture that a pass decides from, made of rows in a fixed number of queries.

Facts only: what follows from them is the planner's business.
"""

from collections import defaultdict
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Prefetch, Q

from fleet.models import Demand, Desired, Device, ModelProfile, Neuron, Placement
from fleet.planner import snapshot as views
from fleet.planner.phases import LIVE, NeuronPhase, PlacementPhase

_MB = 2**20


def fleet_snapshot(now: datetime) -> views.FleetSnapshot:
    """Read all a pass decides from, in 7 queries."""
    policy = fleet_policy()
    recent = Q(phase=PlacementPhase.STOPPED, ended_at__gt=now - policy.settle)
    placements = Placement.objects.filter(Q(phase__in=sorted(LIVE)) | recent)
    return views.FleetSnapshot(
        now=now,
        neurons=tuple(neuron_view(neuron) for neuron in neuron_rows()),
        profiles=tuple(profile_view(profile) for profile in profile_rows()),
        placements=tuple(
            _placement_view(placement)
            for placement in placements.select_related("profile").order_by("pk")
        ),
        waiting=_waiting(now),
        policy=policy,
    )


def fleet_policy() -> views.Policy:
    return views.Policy(
        eviction_strategy=views.EvictionStrategy(settings.CORTEX_EVICTION_STRATEGY),
        min_residency=timedelta(seconds=settings.CORTEX_MIN_RESIDENCY_SECONDS),
        load_stall=timedelta(seconds=settings.CORTEX_LOAD_STALL_SECONDS),
        neuron_lost_after=timedelta(seconds=settings.CORTEX_NEURON_LOST_SECONDS),
        max_wait=timedelta(seconds=settings.CORTEX_MAX_WAIT_SECONDS),
    )


def neuron_rows() -> list[Neuron]:
    return list(Neuron.objects.prefetch_related("devices").order_by("pk"))


def profile_rows() -> list[ModelProfile]:
    return list(
        ModelProfile.objects.prefetch_related(
            Prefetch("pinned_on", Neuron.objects.only("name")), "cooldowns"
        ).order_by("pk")
    )


def _waiting(now: datetime) -> tuple[views.Waiting, ...]:
    groups: dict[tuple[str, int | None], list[Demand]] = defaultdict(list)
    for demand in Demand.objects.filter(expires_at__gt=now).select_related("profile"):
        groups[demand.profile.model_id, demand.on_neuron_id].append(demand)
    return tuple(
        views.Waiting(
            model_id=model_id,
            num_waiting=sum(demand.num_waiting for demand in demands),
            since=min(demand.since for demand in demands),
            on_neuron_id=neuron_id,
        )
        for (model_id, neuron_id), demands in groups.items()
    )


def neuron_view(neuron: Neuron) -> views.NeuronView:
    return views.NeuronView(
        id=neuron.pk,
        name=neuron.name,
        phase=NeuronPhase(neuron.phase),
        devices=tuple(_device_view(device) for device in neuron.devices.all()),
        enabled=neuron.enabled,
        cordoned=neuron.cordoned,
        draining=neuron.draining,
        harnesses=frozenset(neuron.harnesses),
        models_on_disk=frozenset(neuron.models_on_disk),
        last_seen_at=neuron.last_seen_at,
    )


def _device_view(device: Device) -> views.DeviceView:
    return views.DeviceView(
        index=device.index,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        observed_at=device.observed_at,
        usable=device.usable,
    )


def profile_view(profile: ModelProfile) -> views.ProfileView:
    is_measured_so = profile.learned_for == profile.options_key
    ttl = profile.idle_ttl_seconds
    return views.ProfileView(
        id=profile.model_id,
        harness=profile.harness,
        enabled=profile.enabled,
        quarantined=profile.quarantined,
        learned_bytes=profile.learned_bytes if is_measured_so else None,
        declared_bytes=None if profile.vram_mb is None else profile.vram_mb * _MB,
        estimated_bytes=profile.estimated_bytes,
        min_devices=profile.min_devices,
        min_device_bytes=profile.min_device_vram_mb * _MB,
        pinned_on=frozenset(neuron.name for neuron in profile.pinned_on.all()),
        pinned=profile.pinned,
        residency_priority=profile.residency_priority,
        min_placements=profile.min_placements,
        max_placements=profile.max_placements,
        idle_ttl=None if ttl is None else timedelta(seconds=ttl),
        reload_seconds=profile.load_seconds,
        cooldowns=tuple(
            views.Cooldown(cooldown.neuron_id, cooldown.until)
            for cooldown in profile.cooldowns.all()
        ),
    )


def _placement_view(placement: Placement) -> views.PlacementView:
    return views.PlacementView(
        id=placement.pk,
        model_id=placement.profile.model_id,
        neuron_id=placement.neuron_id,
        device_indexes=tuple(placement.device_indexes),
        phase=PlacementPhase(placement.phase),
        memory_bytes=placement.memory_bytes,
        phase_since=placement.phase_since,
        desired_present=placement.desired == Desired.PRESENT,
        in_flight=placement.in_flight,
        queued=placement.queued,
        last_used_at=placement.last_used_at,
        ready_at=placement.ready_at,
        progress_at=placement.progress_at,
        free_before_bytes=placement.free_before_bytes,
    )
