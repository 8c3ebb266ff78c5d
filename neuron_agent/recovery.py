"""When a device process counts as hung, and what to do when one broke down: decisions.

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


class Silence:
    """How long one device process has said nothing, against what it was told to do.

    It is added up tick by tick: a front that stood still itself blames nobody. Patience follows
    the commands that were sent, not the phases of models: a model that is to be unloaded in the
    middle of its load is loaded to the end first.
    """

    def __init__(self, watchdog: WatchdogConfig) -> None:
        self.seconds = 0.0
        self.tick_seconds = min(1.0, watchdog.step_seconds / 4)
        self._watchdog = watchdog
        self._has_started = False
        self._loads: set[str] = set()
        """Models it was told to load and has not said how that went."""

    @property
    def is_too_long(self) -> bool:
        return self.seconds >= self._patience_seconds

    @property
    def _patience_seconds(self) -> float:
        if not self._has_started:
            return self._watchdog.start_seconds
        return self._watchdog.load_seconds if self._loads else self._watchdog.step_seconds

    def add_tick(self) -> None:
        self.seconds += self.tick_seconds

    def end(self) -> None:
        self.seconds = 0.0

    def note_started(self) -> None:
        self._has_started = True

    def note_load(self, model_id: str) -> None:
        """A load was sent; it gets its whole time from here on."""
        self._loads.add(model_id)
        self.seconds = 0.0

    def note_load_over(self, model_id: str) -> None:
        self._loads.discard(model_id)


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
