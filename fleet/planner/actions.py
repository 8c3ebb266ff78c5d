"""What a plan consists of: a closed union of frozen values, each with its reason as data.

They say what is to happen, never how. Applying one twice is harmless: an action that finds its
row changed does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class RefusalCode(StrEnum):
    """Why a model cannot be placed on a neuron (now)."""

    DISABLED = "disabled"
    UNHEALTHY = "unhealthy"
    CORDONED = "cordoned"
    NOT_PINNED_HERE = "not_pinned_here"
    TOO_FEW_DEVICES = "too_few_devices"
    DEVICE_TOO_SMALL = "device_too_small"
    DEVICE_POISONED = "device_poisoned"
    HARNESS_MISSING = "harness_missing"
    DISK_FULL = "disk_full"
    COOLING_DOWN = "cooling_down"
    BUSY_VICTIMS = "busy_victims"
    OUTRANKED = "outranked"
    ALREADY_HERE = "already_here"
    MEMORY_ON_ITS_WAY = "memory_on_its_way"
    """What is leaving, or has just left, will make room: evict nothing more for it."""
    MEMORY_TAKEN = "memory_taken"
    """Something that is no placement holds it: another program, or a report that lags behind."""

    @property
    def passes(self) -> bool:
        """Whether waiting can help, without an operator doing anything."""
        return self in _PASSING


_PASSING = frozenset(
    {
        RefusalCode.UNHEALTHY,
        RefusalCode.DEVICE_POISONED,
        RefusalCode.COOLING_DOWN,
        RefusalCode.BUSY_VICTIMS,
        RefusalCode.ALREADY_HERE,
        RefusalCode.MEMORY_ON_ITS_WAY,
        RefusalCode.MEMORY_TAKEN,
    }
)


class UnloadReason(StrEnum):
    EVICTED = "evicted"
    """Another model needs its memory."""
    IDLE = "idle"
    OPERATOR = "operator"
    SURPLUS = "surplus"
    DRAINED = "drained"
    UNWANTED = "unwanted"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One neuron's answer to a placement. `detail` has the numbers for the operator."""

    neuron: str
    code: RefusalCode
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model on these devices. `memory_bytes` is reserved until it has been measured."""

    model_id: str
    neuron_id: int
    device_indexes: tuple[int, ...]
    memory_bytes: int
    memory_source: str  # learned, declared, estimated or unknown
    reason: str
    refusals: tuple[Refusal, ...] = ()
    """Why the other neurons were not chosen."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Stop a placement. An eviction sets `only_if_idle`, so the neuron itself has the last word."""

    placement_id: int
    reason: UnloadReason
    detail: str
    only_if_idle: bool
    for_model_id: str | None = None
    """The newcomer, if this is an eviction."""
    needed_bytes: int | None = None
    freed_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """The model is wanted and cannot be placed now; waiting helps. Told to those who wait."""

    model_id: str
    refusals: tuple[Refusal, ...]
    on_neuron_id: int | None = None
    """Told only to the operator who asked for this neuron and no other."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The model is wanted and no neuron of this fleet can take it as things are."""

    model_id: str
    refusals: tuple[Refusal, ...]
    on_neuron_id: int | None = None
    """Told only to the operator who asked for this neuron and no other."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End a load that stands still."""

    placement_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class MarkLost:
    """The placement's neuron has not been heard of past the lease."""

    placement_id: int
    reason: str


Action = Load | Unload | Hold | Refuse | Fail | MarkLost


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a model would go now and why not elsewhere; for operators."""

    model_id: str
    needed_bytes: int
    memory_source: str
    chosen_neuron: str | None
    device_indexes: tuple[int, ...] = ()
    victims: tuple[int, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
