"""The frozen picture of the fleet at one `now` that every decision is made from.

It knows nothing of where the facts came from. Times are aware datetimes, sizes are bytes. The
views carry facts, not verdicts: what follows from them is the rules' business.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from fleet.planner.phases import NeuronPhase, PlacementPhase

DEFAULT_RESIDENCY_PRIORITY = 100


class EvictionStrategy(StrEnum):
    LRU = "lru"
    PRIORITY = "priority"
    COST = "cost"


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's settings that decisions depend on."""

    eviction_strategy: EvictionStrategy = EvictionStrategy.LRU
    min_residency: timedelta = timedelta(seconds=10)
    load_stall: timedelta = timedelta(minutes=5)
    """A load fails by standing still this long, not by taking long."""
    neuron_lost_after: timedelta = timedelta(seconds=60)
    settle: timedelta = timedelta(seconds=5)
    """How long an unload may take to show in the device's free memory before we stop waiting."""
    settled_ratio: float = 0.75
    """The share of an unload's bytes that must be back for it to count as settled."""
    max_wait: timedelta = timedelta(seconds=60)
    """How long a resident that others wait to displace is still given new requests."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    index: int
    total_bytes: int
    free_bytes: int
    """As the neuron last reported it, at `observed_at`."""
    observed_at: datetime | None = None
    usable: bool = True
    """False while poisoned, hung, being restarted or given up."""


@dataclass(frozen=True, slots=True)
class NeuronView:
    id: int
    name: str
    phase: NeuronPhase
    devices: tuple[DeviceView, ...]
    enabled: bool = True
    cordoned: bool = False
    draining: bool = False
    harnesses: frozenset[str] = frozenset({"torch"})
    models_on_disk: frozenset[str] = frozenset()
    last_seen_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Cooldown:
    """After a failed load, this model is not tried on this neuron again before `until`."""

    neuron_id: int
    until: datetime


@dataclass(frozen=True, slots=True)
class ProfileView:
    """How to serve a model, and what it needs. Byte figures are for all its devices together."""

    id: str
    harness: str = "torch"
    enabled: bool = True
    quarantined: bool = False
    learned_bytes: int | None = None
    """Measured on an earlier placement with the same revision, quant, context and devices."""
    declared_bytes: int | None = None
    estimated_bytes: int | None = None
    """From the weight files, or what a neuron said when it refused a load."""
    min_devices: int = 1
    min_device_bytes: int = 0
    pinned_on: frozenset[str] = frozenset()
    """Names of the neurons it may run on; empty = any."""
    pinned: bool = False
    residency_priority: int = DEFAULT_RESIDENCY_PRIORITY
    min_placements: int = 0
    max_placements: int | None = None
    idle_ttl: timedelta | None = None
    reload_seconds: float | None = None
    """Mean of its measured loads."""
    recent_requests: int = 0
    """Demand over the last hour, for the `cost` strategy."""
    cooldowns: tuple[Cooldown, ...] = ()


@dataclass(frozen=True, slots=True)
class PlacementView:
    id: int
    model_id: str
    neuron_id: int
    device_indexes: tuple[int, ...]
    phase: PlacementPhase
    memory_bytes: int
    """On all its devices together: measured once ready, reserved before that."""
    phase_since: datetime
    desired_present: bool = True
    in_flight: int = 0
    queued: int = 0
    last_used_at: datetime | None = None
    ready_at: datetime | None = None
    progress_at: datetime | None = None
    """When its load last moved on."""
    free_before_bytes: int | None = None
    """The least free memory on any of its devices when its unload began."""

    @property
    def idle(self) -> bool:
        return self.in_flight == 0 and self.queued == 0

    @property
    def bytes_per_device(self) -> int:
        return -(-self.memory_bytes // max(1, len(self.device_indexes)))


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests, or an operator, waiting for a model since `since`."""

    model_id: str
    num_waiting: int
    since: datetime
    on_neuron_id: int | None = None
    """An operator asked for this neuron and no other."""


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Everything a pass may know. `placements` holds the live ones and those stopped just now."""

    now: datetime
    neurons: tuple[NeuronView, ...] = ()
    profiles: tuple[ProfileView, ...] = ()
    placements: tuple[PlacementView, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    policy: Policy = field(default_factory=Policy)

    def profile(self, model_id: str) -> ProfileView:
        """The model's profile; one missing from the catalogue gets the defaults."""
        for profile in self.profiles:
            if profile.id == model_id:
                return profile
        return ProfileView(id=model_id)

    def neuron(self, neuron_id: int) -> NeuronView | None:
        return next((neuron for neuron in self.neurons if neuron.id == neuron_id), None)

    def placements_on(self, neuron_id: int) -> Iterable[PlacementView]:
        return (placement for placement in self.placements if placement.neuron_id == neuron_id)

    def placements_of(self, model_id: str) -> Iterable[PlacementView]:
        return (placement for placement in self.placements if placement.model_id == model_id)
