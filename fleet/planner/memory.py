"""What a placement needs on each of its devices, and what a device has for it.

It does not know which device is the right one, nor who should make room: it only counts. The
count errs on the side of a load that waits over one that fails:

- A placement on its way in has its whole share set aside until a report made after it became
  ready shows it, and a load that is being stopped until it has ended. What they may already hold
  is thus counted twice; that part is `coming`, not free, because nobody can tell it from memory
  that somebody else took.
- Memory on its way back is `coming` until a report shows it. Only reported memory is spent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from fleet.planner.phases import ARRIVING, ENDED, LEAVING, OCCUPYING, PlacementPhase
from fleet.planner.snapshot import DeviceView, FleetSnapshot, PlacementView, ProfileView


class MemorySource(StrEnum):
    LEARNED = "learned"
    DECLARED = "declared"
    ESTIMATED = "estimated"
    UNKNOWN = "unknown"
    """Nothing is known, so nothing is reserved: the neuron's own check has the last word."""


@dataclass(frozen=True, slots=True)
class Need:
    total_bytes: int
    source: MemorySource
    num_devices: int

    @property
    def bytes_per_device(self) -> int:
        return -(-self.total_bytes // self.num_devices)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """`free_bytes` may be spent now (below zero: more is promised than there is)."""

    free_bytes: int
    coming_bytes: int
    """Expected back without anyone else being stopped."""

    @property
    def eventual_bytes(self) -> int:
        return self.free_bytes + self.coming_bytes


def need_of(profile: ProfileView) -> Need:
    """Return what the model takes on all its devices together, from the best source there is."""
    num_devices = max(1, profile.min_devices)
    for source, num_bytes in (
        (MemorySource.LEARNED, profile.learned_bytes),
        (MemorySource.DECLARED, profile.declared_bytes),
        (MemorySource.ESTIMATED, profile.estimated_bytes),
    ):
        if num_bytes is not None:
            return Need(num_bytes, source, num_devices)
    return Need(0, MemorySource.UNKNOWN, num_devices)


def device_memory(
    device: DeviceView, placements: Iterable[PlacementView], snapshot: FleetSnapshot
) -> DeviceMemory:
    """Count a device's memory, given all placements of its neuron."""
    here = [placement for placement in placements if device.index in placement.device_indexes]
    arriving = [placement for placement in here if _is_unreported(placement, device)]
    settled = [p for p in here if p.phase in OCCUPYING and p not in arriving]
    reserved_bytes = _share_bytes(arriving)
    # Of what is in use and not accounted for, at most their own shares can be the loads'.
    unexplained_bytes = device.total_bytes - device.free_bytes - _share_bytes(settled)
    begun_bytes = _share_bytes(p for p in arriving if p.phase is not PlacementPhase.PENDING)
    counted_twice_bytes = max(0, min(unexplained_bytes, begun_bytes))
    return DeviceMemory(
        free_bytes=device.free_bytes - reserved_bytes,
        coming_bytes=counted_twice_bytes + _returning_bytes(device, here, snapshot),
    )


def is_counted_as_coming(placement: PlacementView) -> bool:
    """Whether the live placement's memory is on its way back, soon and by itself."""
    if placement.phase is PlacementPhase.DRAINING:
        return placement.idle  # a busy one leaves when its requests end, which may be long
    return placement.phase is PlacementPhase.UNLOADING


def _share_bytes(placements: Iterable[PlacementView]) -> int:
    return sum(placement.bytes_per_device for placement in placements)


def _is_unreported(placement: PlacementView, device: DeviceView) -> bool:
    """Whether the device's report may not show all of the placement's memory yet."""
    if placement.phase is PlacementPhase.READY:
        return _predates(device, placement.ready_at)
    return placement.phase in ARRIVING or _is_a_load_being_stopped(placement)


def _is_a_load_being_stopped(placement: PlacementView) -> bool:
    """Until its neuron has stopped it, it goes on taking memory."""
    return placement.phase in LEAVING and placement.ready_at is None


def _predates(device: DeviceView, moment: datetime | None) -> bool:
    return device.observed_at is not None and moment is not None and device.observed_at < moment


def _returning_bytes(
    device: DeviceView, here: Iterable[PlacementView], snapshot: FleetSnapshot
) -> int:
    """What unloads begun or just done still owe the device's report."""
    departing = [p for p in here if _is_departing(p, device, snapshot)]
    measured = [
        p for p in departing if p.free_before_bytes is not None and not _is_a_load_being_stopped(p)
    ]
    unmeasured_bytes = _share_bytes(departing) - _share_bytes(measured)
    before_bytes = [p.free_before_bytes for p in measured if p.free_before_bytes is not None]
    if not before_bytes:
        return unmeasured_bytes
    # Unloads that overlap are judged together: the first one's bytes must not settle the second.
    start_bytes, owed_bytes = min(before_bytes), _share_bytes(measured)
    is_over = all(p.phase in ENDED and not _predates(device, p.phase_since) for p in measured)
    enough_bytes = start_bytes + snapshot.policy.settled_ratio * owed_bytes
    if is_over and device.free_bytes >= enough_bytes:
        return unmeasured_bytes
    still_owed_bytes = start_bytes + owed_bytes - device.free_bytes
    return unmeasured_bytes + max(0, min(still_owed_bytes, owed_bytes))


def _is_departing(placement: PlacementView, device: DeviceView, snapshot: FleetSnapshot) -> bool:
    if placement.phase not in ENDED:
        return is_counted_as_coming(placement)
    # A report older than the end says nothing about it; the one after it may still be early.
    is_recent = snapshot.now - placement.phase_since < snapshot.policy.settle
    may_be_early = is_recent and placement.free_before_bytes is not None
    return may_be_early or _predates(device, placement.phase_since)
