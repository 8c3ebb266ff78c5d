"""What to do when a device process broke down: decisions, as functions of what is known.

Nothing here starts, ends or waits for anything, or reads a clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from neuron_agent.config import WatchdogConfig
from neuron_agent.protocol import ModelPhase

MAX_INTERRUPTIONS = 2
"""A model whose own load ends its device process more often than this has failed."""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Why a device process has to be replaced. `kind` is poisoned, died or hung."""

    kind: str
    error: str


class Fate(StrEnum):
    """What becomes of a model whose device process is gone."""

    GONE = "gone"
    """It was being unloaded: that is done now."""
    WAITING = "waiting"
    """Its first load had not begun; the next process will begin it."""
    RECOVERING = "recovering"
    """It is loaded again in the next process."""
    FAILED = "failed"
    """Its load ends the process each time: it must not take its neighbours along any more."""


def fate_of_model(phase: ModelPhase, had_begun: bool, num_interruptions: int) -> Fate:
    """Return a model's fate. `num_interruptions` counts its interrupted loads, this one included.

    `had_begun` says whether the process that broke down had begun to load the model.
    """
    match phase:
        case ModelPhase.DRAINING | ModelPhase.UNLOADING:
            return Fate.GONE
        case ModelPhase.READY:
            return Fate.RECOVERING
        case ModelPhase.FAILED:
            return Fate.FAILED
        case ModelPhase.LOADING | ModelPhase.WARMING | ModelPhase.RECOVERING:
            if not had_begun:
                return Fate.WAITING
            return Fate.FAILED if num_interruptions > MAX_INTERRUPTIONS else Fate.RECOVERING


def recent(fault_times: Sequence[float], now: float, watchdog: WatchdogConfig) -> list[float]:
    """Return the faults that still count."""
    return [at for at in fault_times if at >= now - watchdog.fault_window_seconds]


def is_given_up(num_recent_faults: int, watchdog: WatchdogConfig) -> bool:
    """Whether a device has failed too often of late to be tried again."""
    return num_recent_faults >= watchdog.max_faults


def backoff_seconds(num_recent_faults: int, watchdog: WatchdogConfig) -> float:
    """Return how long to wait before the next process, doubling with each recent fault."""
    doubled = watchdog.backoff_seconds * 2.0 ** min(num_recent_faults - 1, 32)
    return min(watchdog.max_backoff_seconds, doubled)
