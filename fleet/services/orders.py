"""From a decision to an order for a neuron, and from the neuron's answer to the row.

Each step is a compare-and-set of its own, so that a worker killed between any two leaves a row
the next pass goes on from: an order whose answer nobody recorded is simply given again. Nothing
here talks to a neuron.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.db import IntegrityError, transaction
from django.db.models import Q

from fleet import metrics
from fleet.models import Demand, Desired, EventKind, ModelProfile, Neuron, Placement
from fleet.notify import publish_fleet_changed
from fleet.planner.actions import Load, Unload, UnloadReason
from fleet.planner.phases import LEAVING, LIVE, NeuronPhase, PlacementPhase
from fleet.services.events import record_placement_event
from fleet.services.failures import Failure, fail_placement
from fleet.services.moves import move_placement
from fleet.wording import in_words
from neuron_agent.protocol import LoadRequest, UnloadRequest

DRAIN_SECONDS = 60.0
"""How long running requests may go on when an operator has a model unloaded."""
REPEAT_AFTER = timedelta(seconds=6)
"""An order without a recorded answer is given again: longer than a call to a neuron may last."""
ORDER_TAKEN = frozenset({"draining", "unloading"})
"""Stages of a leaving placement whose neuron is known to have the order."""

_P = PlacementPhase
_MB = 2**20
_EXCLUSIVE_UNLOAD = {
    _P.READY: _P.DRAINING,
    _P.PENDING: _P.STOPPED,
    _P.LOADING: _P.UNLOADING,
    _P.WARMING: _P.UNLOADING,
    _P.RECOVERING: _P.UNLOADING,
    # Nobody is there to be told. Should the neuron come back with it, it is found there again.
    _P.LOST: _P.STOPPED,
}


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """`generation` is the row's when the order was given: an answer to an older one is void."""

    placement_id: int
    generation: int
    neuron_id: int
    request: LoadRequest


@dataclass(frozen=True, slots=True)
class UnloadOrder:
    placement_id: int
    generation: int
    neuron_id: int
    request: UnloadRequest


Order = LoadOrder | UnloadOrder


def begin_load(action: Load, now: datetime) -> LoadOrder | None:
    """Reserve the memory by a row; None if another pass was first."""
    profile = ModelProfile.objects.filter(model_id=action.model_id).first()
    neuron = Neuron.objects.filter(pk=action.neuron_id).first()
    if profile is None or neuron is None:
        return None
    placement = Placement(
        profile=profile,
        neuron=neuron,
        device_indexes=list(action.device_indexes),
        memory_bytes=action.memory_bytes,
        phase_since=now,
        requested_at=now,
        progress_at=now,
        reason=action.reason[:300],
    )
    try:
        with transaction.atomic():
            placement.save(force_insert=True)
            _forget_verdicts(placement)
            _record_load(placement, action, now)
            publish_fleet_changed()
    except IntegrityError:  # one live placement per model and neuron
        return None
    return load_order(placement)


def load_order(placement: Placement) -> LoadOrder:
    profile = placement.profile
    request = LoadRequest(
        model_id=profile.model_id,
        source=profile.source or None,
        revision=profile.revision or None,
        harness=profile.harness,
        quant=profile.quant or None,
        dtype=profile.dtype or None,
        tensor_parallel=profile.min_devices,
        devices=tuple(placement.device_indexes) or None,
        max_context=profile.max_context,
    )
    return LoadOrder(placement.pk, placement.generation, placement.neuron_id, request)


def load_accepted(order: LoadOrder, now: datetime) -> bool:
    """The neuron has begun; polls tell the rest. False if the row has moved on."""
    placement = _current(order)
    if placement is None or placement.phase != _P.PENDING:
        return False
    return move_placement(placement, _P.LOADING, "", now, changes={"progress_at": now})


def load_refused(order: LoadOrder, failure: Failure, now: datetime) -> bool:
    placement = _current(order)
    if placement is None or placement.phase != _P.PENDING:
        return False
    return fail_placement(placement, failure, now)


def begin_unload(action: Unload, now: datetime) -> UnloadOrder | None:
    """Send nothing there any more; None if the placement changed, or has got requests."""
    placement = _find(action.placement_id)
    if placement is None:
        return None
    phase = PlacementPhase(placement.phase)
    target = _EXCLUSIVE_UNLOAD.get(phase)
    is_wrong_moment = action.only_if_idle and (phase is not _P.READY or placement.in_flight > 0)
    if target is None or is_wrong_moment:
        return None
    changes = {"stage": "", "free_before_bytes": _least_free_bytes(placement)}
    data = {
        "reason": action.reason,
        "for_model": action.for_model_id,
        "needed_bytes": action.needed_bytes,
        "freed_bytes": action.freed_bytes,
        "detail": action.detail,
    }
    reason = describe_unload(action)
    if not move_placement(placement, target, reason, now, data=data, changes=changes):
        return None
    transaction.on_commit(partial(metrics.count_unload, str(action.reason)))
    return None if target is _P.STOPPED else unload_order(placement, action.only_if_idle)


def unload_order(placement: Placement, only_if_idle: bool) -> UnloadOrder:
    request = UnloadRequest(
        model_id=placement.profile.model_id,
        drain_seconds=0.0 if only_if_idle else DRAIN_SECONDS,
        only_if_idle=only_if_idle,
    )
    return UnloadOrder(placement.pk, placement.generation, placement.neuron_id, request)


def unload_accepted(order: UnloadOrder, is_draining: bool, now: datetime) -> bool:
    """The neuron lets its requests finish, or is at it already."""
    placement = _current(order)
    if placement is None or placement.phase not in LEAVING:
        return False
    if placement.phase == _P.DRAINING and not is_draining:
        return move_placement(placement, _P.UNLOADING, "", now, changes={"stage": "unloading"})
    unchanged = Placement.objects.filter(pk=placement.pk, generation=placement.generation)
    return bool(unchanged.update(stage="draining"))


def unload_refused_busy(order: UnloadOrder, message: str, now: datetime) -> bool:
    """A request came in meanwhile: the placement goes on serving."""
    placement = _current(order)
    if placement is None or placement.phase != _P.DRAINING:
        return False
    return move_placement(placement, _P.READY, f"busy, not unloaded: {message}", now)


def unload_found_nothing(order: UnloadOrder, now: datetime) -> bool:
    placement = _current(order)
    if placement is None or placement.phase not in LIVE:
        return False
    return move_placement(placement, _P.STOPPED, "the neuron did not have it", now)


def unfinished_orders(now: datetime) -> tuple[Order, ...]:
    """Orders whose answer was never recorded: their worker died, or the neuron did not answer."""
    stuck = Placement.objects.filter(
        phase__in=[_P.PENDING, _P.DRAINING, _P.UNLOADING],
        phase_since__lte=now - REPEAT_AFTER,
        neuron__phase=NeuronPhase.HEALTHY,
    ).exclude(stage__in=ORDER_TAKEN)
    return tuple(
        load_order(placement)
        if placement.phase == _P.PENDING
        # Only an operator's unload may end requests that run; whether it is one, the row says.
        else unload_order(placement, only_if_idle=placement.desired == Desired.PRESENT)
        for placement in stuck.select_related("profile", "neuron").order_by("pk")
    )


def describe_unload(action: Unload) -> str:
    if action.reason is not UnloadReason.EVICTED:
        return f"{action.reason}: {action.detail}" if action.detail else str(action.reason)
    needed = "?" if action.needed_bytes is None else f"{action.needed_bytes / _MB:.0f}"
    freed = "?" if action.freed_bytes is None else f"{action.freed_bytes / _MB:.0f}"
    return f"displaced by {action.for_model_id}, which needs {needed} MB; frees {freed} MB"


def _forget_verdicts(placement: Placement) -> None:
    """Those who wait for this load were told why there was none."""
    is_awaited_here = Q(on_neuron=None) | Q(on_neuron=placement.neuron_id)
    told = Demand.objects.filter(is_awaited_here, profile=placement.profile_id)
    told.filter(verdict__isnull=False).update(verdict=None)


def _record_load(placement: Placement, action: Load, now: datetime) -> None:
    others = f"; not {in_words(action.refusals)}" if action.refusals else ""
    message = (
        f"load {action.model_id} on {placement.neuron.name}, device "
        f"{', '.join(map(str, action.device_indexes))} ({action.reason}){others}"
    )
    data = {
        "reason": action.reason,
        "devices": list(action.device_indexes),
        "memory_bytes": action.memory_bytes,
        "memory_source": action.memory_source,
        "refusals": [
            {"neuron": r.neuron, "code": r.code, "detail": r.detail} for r in action.refusals
        ],
    }
    record_placement_event(placement, EventKind.DECISION, message, now, data)


def _least_free_bytes(placement: Placement) -> int | None:
    devices = placement.neuron.devices.filter(index__in=placement.device_indexes)
    return min((device.free_bytes for device in devices), default=None)


def _current(order: Order) -> Placement | None:
    placement = _find(order.placement_id)
    return placement if placement and placement.generation == order.generation else None


def _find(placement_id: int) -> Placement | None:
    return Placement.objects.select_related("profile", "neuron").filter(pk=placement_id).first()
