"""Where a model would load: filter, score, pick over the neurons of the fleet.

It does not know why the model is wanted, and it changes nothing: victims are named, not stopped.

The best place is free now; next best is memory on its way back, which is waited for; eviction is
last, so that nothing is evicted while a neuron with room exists. A model pinned on some neurons
is refused by all others, which puts "pinned there" before everything else.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.eviction import Newcomer, OrderKey
from fleet.planner.memory import Need, need_of
from fleet.planner.phases import LIVE, NeuronPhase
from fleet.planner.room import (
    Place,
    Room,
    Site,
    describe,
    find_room,
    in_gib,
    victims_cost,
)
from fleet.planner.snapshot import DeviceView, FleetSnapshot, NeuronView, ProfileView


@dataclass(frozen=True, slots=True)
class Placeable:
    """It fits at once, or after `place.victims` are gone. `refusals` are the other neurons'."""

    place: Place
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, slots=True)
class Unplaceable:
    refusals: tuple[Refusal, ...]
    awaited: Place | None = None
    """Memory is on its way back there, and the newcomer will fit."""


def find_place(
    newcomer: Newcomer,
    neurons: Iterable[NeuronView],
    snapshot: FleetSnapshot,
    may_evict: bool = True,
) -> Placeable | Unplaceable:
    """Pick the best place for the newcomer on any of `neurons`."""
    answers = [_consider(neuron, newcomer, snapshot) for neuron in neurons]
    refusals = tuple(answer for answer in answers if isinstance(answer, Refusal))
    places = [answer for answer in answers if isinstance(answer, Place)]
    if not may_evict:
        places = [place for place in places if place.room is not Room.AFTER_EVICTION]
    if not places:
        return Unplaceable(refusals)
    best = min(places, key=lambda place: _score(place, newcomer, snapshot))
    if best.room is Room.ON_ITS_WAY:
        return Unplaceable(refusals + _waits_for_memory(places), best)
    return Placeable(best, refusals)


def feasible_neurons(profile: ProfileView, neurons: Iterable[NeuronView]) -> tuple[str, ...]:
    """Name the neurons that could serve the model as the fleet is built, whatever is loaded now."""
    need = need_of(profile)
    feasible = (n.name for n in neurons if _lasting_reason(n, profile, need) is None)
    return tuple(sorted(feasible))


def _waits_for_memory(places: Iterable[Place]) -> tuple[Refusal, ...]:
    code, detail = RefusalCode.MEMORY_ON_ITS_WAY, "it will fit when what is leaving has left"
    return tuple(
        Refusal(place.neuron.name, code, detail)
        for place in places
        if place.room is Room.ON_ITS_WAY
    )


def _score(
    place: Place, newcomer: Newcomer, snapshot: FleetSnapshot
) -> tuple[Room, bool, list[OrderKey], int, str, int]:
    """The lowest is the best; the name makes it total."""
    is_download_needed = newcomer.profile.id not in place.neuron.models_on_disk
    cost = victims_cost(place.victims, snapshot)
    name, neuron_id = place.neuron.name, place.neuron.id
    return place.room, is_download_needed, cost, -place.free_after_bytes, name, neuron_id


def _consider(neuron: NeuronView, newcomer: Newcomer, snapshot: FleetSnapshot) -> Place | Refusal:
    """Ask one neuron: lasting reasons against it first, for nobody should wait in vain."""
    profile = newcomer.profile
    need = need_of(profile)
    reason = _lasting_reason(neuron, profile, need) or _passing_reason(
        neuron, profile, need, snapshot
    )
    if reason is not None:
        code, detail = reason
        return Refusal(neuron.name, code, detail)
    devices = tuple(device for device in _large_enough(neuron, profile, need) if device.usable)
    return find_room(Site(neuron, devices, newcomer, need, snapshot))


_Reason = tuple[RefusalCode, str]


def _lasting_reason(neuron: NeuronView, profile: ProfileView, need: Need) -> _Reason | None:
    return (
        _model_reason(profile)
        or _operator_reason(neuron, profile)
        or _hardware_reason(neuron, profile, need)
    )


def _model_reason(profile: ProfileView) -> _Reason | None:
    if not profile.enabled or profile.max_placements == 0:
        return RefusalCode.DISABLED, "the model is disabled"
    if profile.quarantined:
        return RefusalCode.DISABLED, "the model is quarantined: it brought devices down"
    return None


def _operator_reason(neuron: NeuronView, profile: ProfileView) -> _Reason | None:
    if not neuron.enabled:
        return RefusalCode.DISABLED, "the neuron is disabled"
    if neuron.cordoned or neuron.draining:
        return RefusalCode.CORDONED, "draining" if neuron.draining else "cordoned"
    if profile.pinned_on and neuron.name not in profile.pinned_on:
        return RefusalCode.NOT_PINNED_HERE, f"only on {', '.join(sorted(profile.pinned_on))}"
    return None


def _hardware_reason(neuron: NeuronView, profile: ProfileView, need: Need) -> _Reason | None:
    if neuron.phase is NeuronPhase.UNKNOWN:  # then nothing is known of its hardware
        return RefusalCode.UNHEALTHY, "not heard of yet"
    if profile.harness not in neuron.harnesses:
        return RefusalCode.HARNESS_MISSING, f"has no {profile.harness}"
    if len(neuron.devices) < need.num_devices:
        return RefusalCode.TOO_FEW_DEVICES, f"has {len(neuron.devices)} of {need.num_devices}"
    num_large_enough = len(_large_enough(neuron, profile, need))
    if num_large_enough < need.num_devices:
        at_least = in_gib(profile.min_device_bytes)
        detail = f"{describe(need)} of {at_least} or more; has {num_large_enough} so large"
        return RefusalCode.DEVICE_TOO_SMALL, detail
    return None


def _passing_reason(
    neuron: NeuronView, profile: ProfileView, need: Need, snapshot: FleetSnapshot
) -> _Reason | None:
    if neuron.phase is not NeuronPhase.HEALTHY:
        return RefusalCode.UNHEALTHY, f"the neuron is {neuron.phase}"
    if any(
        p.neuron_id == neuron.id and p.phase in LIVE for p in snapshot.placements_of(profile.id)
    ):
        return RefusalCode.ALREADY_HERE, "at most one copy of a model on a neuron"
    num_usable = sum(device.usable for device in _large_enough(neuron, profile, need))
    if num_usable < need.num_devices:
        return RefusalCode.DEVICE_POISONED, f"{num_usable} of {need.num_devices} usable"
    for cooldown in profile.cooldowns:
        if cooldown.neuron_id == neuron.id and snapshot.now < cooldown.until:
            return RefusalCode.COOLING_DOWN, f"failed here; until {cooldown.until.isoformat()}"
    return None


def _large_enough(neuron: NeuronView, profile: ProfileView, need: Need) -> list[DeviceView]:
    least_bytes = max(need.bytes_per_device, profile.min_device_bytes)
    return [device for device in neuron.devices if device.total_bytes >= least_bytes]
