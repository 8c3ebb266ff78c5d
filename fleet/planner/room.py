"""Room for a newcomer on one neuron: which of its devices, and who would have to stop.

It does not know other neurons, and whether the newcomer may come here at all was settled before:
only memory decides. Memory is counted per device, and each chosen one must have the full share.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import combinations

from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.eviction import (
    Newcomer,
    OrderKey,
    choose_victims,
    eviction_order,
    freed_bytes,
    is_evictable_now,
    may_displace,
)
from fleet.planner.memory import Need, device_memory, is_counted_as_coming
from fleet.planner.phases import LEAVING, OCCUPYING
from fleet.planner.snapshot import DeviceView, FleetSnapshot, NeuronView, PlacementView

MAX_DEVICES_COMPARED = 8
"""Sets of devices are compared among so many of a neuron's at most: 70 sets, not thousands."""

RoomByIndex = Mapping[int, int]
"""Bytes by the index of the device."""


class Room(IntEnum):
    """How a place comes to have room, the better the lower."""

    FREE = 0
    ON_ITS_WAY = 1
    AFTER_EVICTION = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Devices of a neuron where the newcomer fits, or will."""

    neuron: NeuronView
    device_indexes: tuple[int, ...]
    room: Room
    free_after_bytes: int
    victims: tuple[PlacementView, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """A neuron as one newcomer sees it. `devices` are those it could use, were they empty."""

    neuron: NeuronView
    devices: tuple[DeviceView, ...]
    newcomer: Newcomer
    need: Need
    snapshot: FleetSnapshot

    @property
    def placements(self) -> Iterable[PlacementView]:
        return self.snapshot.placements_on(self.neuron.id)


def find_room(site: Site) -> Place | Refusal:
    """Return the best devices: with free memory, with memory on its way, or after an eviction."""
    placements = tuple(site.placements)
    memory = {d.index: device_memory(d, placements, site.snapshot) for d in site.devices}
    free = {index: one.free_bytes for index, one in memory.items()}
    eventual = {index: one.eventual_bytes for index, one in memory.items()}
    return (
        _without_eviction(site, free, Room.FREE)
        or _without_eviction(site, eventual, Room.ON_ITS_WAY)
        or _after_eviction(site, eventual)
        or _blocked(site, free, eventual)
    )


def victims_cost(victims: Iterable[PlacementView], snapshot: FleetSnapshot) -> list[OrderKey]:
    """Compare sets of victims by their dearest member first; a smaller set is cheaper."""
    return sorted((eviction_order(victim, snapshot) for victim in victims), reverse=True)


def _without_eviction(site: Site, room_bytes: RoomByIndex, room: Room) -> Place | None:
    chosen = _with_most(room_bytes, site.need.num_devices)
    share_bytes = site.need.bytes_per_device
    if any(room_bytes[index] < share_bytes for index in chosen):
        return None
    left_bytes = sum(room_bytes[index] - share_bytes for index in chosen)
    return Place(site.neuron, tuple(sorted(chosen)), room, left_bytes)


def _after_eviction(site: Site, eventual: RoomByIndex) -> Place | None:
    """Compare the sets of devices that victims could clear; the cheapest victims win."""
    candidates = _evictable_in_order(site)
    obtainable = _with_freed(eventual, candidates)
    # If any set of devices can be cleared, the one with the most to obtain can.
    compared = _with_most(obtainable, max(site.need.num_devices, MAX_DEVICES_COMPARED))
    ranks = {candidate.id: rank for rank, candidate in enumerate(candidates)}
    places = [
        place
        for device_indexes in combinations(sorted(compared), site.need.num_devices)
        if (place := _clear(site, device_indexes, eventual, candidates))
    ]
    return min(places, key=lambda place: _preference(place, ranks), default=None)


def _clear(
    site: Site,
    device_indexes: tuple[int, ...],
    eventual: RoomByIndex,
    candidates: Sequence[PlacementView],
) -> Place | None:
    lacking_bytes = {
        index: site.need.bytes_per_device - eventual[index] for index in device_indexes
    }
    victims = choose_victims(lacking_bytes, candidates)
    if victims is None:
        return None
    left_bytes = sum(freed_bytes(index, victims) - lack for index, lack in lacking_bytes.items())
    return Place(site.neuron, device_indexes, Room.AFTER_EVICTION, left_bytes, victims)


def _preference(place: Place, ranks: Mapping[int, int]) -> tuple[list[int], int, tuple[int, ...]]:
    """As `victims_cost` has it, but by rank: on one neuron that says the same and is cheap."""
    cost = sorted((ranks[victim.id] for victim in place.victims), reverse=True)
    return cost, -place.free_after_bytes, place.device_indexes


def _evictable_in_order(site: Site) -> tuple[PlacementView, ...]:
    evictable = (
        placement
        for placement in site.placements
        if is_evictable_now(placement, site.snapshot)
        and may_displace(site.newcomer, placement, site.snapshot)
    )
    return tuple(sorted(evictable, key=lambda placement: eviction_order(placement, site.snapshot)))


def _blocked(site: Site, free: RoomByIndex, eventual: RoomByIndex) -> Refusal:
    """Say whether somebody must be waited for, or may not be displaced at all."""
    staying = [
        placement
        for placement in site.placements
        if placement.phase in OCCUPYING and not is_counted_as_coming(placement)
    ]
    displaceable = [
        placement
        for placement in staying
        if placement.phase in LEAVING or may_displace(site.newcomer, placement, site.snapshot)
    ]
    if _is_enough(_with_freed(eventual, displaceable), site.need):
        code = RefusalCode.BUSY_VICTIMS
    elif _is_enough(_with_freed(eventual, staying), site.need):
        code = RefusalCode.OUTRANKED
    else:
        code = RefusalCode.MEMORY_TAKEN
    most = _with_most(free, site.need.num_devices)
    least_free_bytes = max(0, min(free[index] for index in most))
    detail = f"{describe(site.need)}; {in_gib(least_free_bytes)} free"
    return Refusal(site.neuron.name, code, detail)


def describe(need: Need) -> str:
    share = in_gib(need.bytes_per_device)
    return f"needs {share} ({need.source}) on each of {need.num_devices} device(s)"


def in_gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


def _with_freed(room_bytes: RoomByIndex, victims: Sequence[PlacementView]) -> RoomByIndex:
    return {index: room + freed_bytes(index, victims) for index, room in room_bytes.items()}


def _with_most(room_bytes: RoomByIndex, num_devices: int) -> list[int]:
    return sorted(room_bytes, key=lambda index: (-room_bytes[index], index))[:num_devices]


def _is_enough(room_bytes: RoomByIndex, need: Need) -> bool:
    num_fitting = sum(room >= need.bytes_per_device for room in room_bytes.values())
    return num_fitting >= need.num_devices
