"""How far a load is while the library that reads the weights says nothing.

A thread beside the load looks at one number, the memory that the weights take as they arrive,
and tells what it means. It touches no tensor and makes no call to the device; a load that stands
still is silent here too.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

PERIOD_SECONDS = 1.0
STEPS = 1000
"""How many steps a whole load has: less than one is not told."""
LEAST_STEP_BYTES = 4 * 1024 * 1024
"""Below this, growth may be anything: a few pages of a library, say."""

Progress = Callable[[str, float, int, int], None]
"""Takes stage, percent of the whole load, bytes done, bytes in all."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a load: its share of the bar, and the weights read before and after it."""

    name: str
    start_percent: float
    end_percent: float
    start_bytes: int
    end_bytes: int


@dataclass(frozen=True, slots=True)
class Gauge:
    """`read` gives bytes in use; they grow by about `expected_bytes` while weights arrive."""

    read: Callable[[], int]
    expected_bytes: int


def gauge_for(device: torch.device, *, file_bytes: int, weight_bytes: int) -> Gauge:
    """Return what to look at: on a GPU its allocator's count, on a CPU the pages of files.

    On a CPU the weights are mapped, and read when they are first used; the heap would show
    requests that pile up beside the load as well.
    """
    if device.type == "cuda":
        return Gauge(lambda: torch.cuda.memory_allocated(device), weight_bytes)
    return Gauge(_mapped_file_bytes, file_bytes)


def anonymous_bytes() -> int:
    """Return this process's own memory; 0 where nobody counts it.

    Pages of files are not of it: the system takes them back when others want the room.
    """
    resident_bytes, file_bytes = _resident_and_file_bytes()
    return resident_bytes - file_bytes


def _mapped_file_bytes() -> int:
    """Return the size of this process's resident pages of files; 0 where nobody counts them."""
    return _resident_and_file_bytes()[1]


def _resident_and_file_bytes() -> tuple[int, int]:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0, 0
    columns = statm.read_text().split()
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return int(columns[1]) * page_bytes, int(columns[2]) * page_bytes


class GrowthMeter:
    """Samples in; out comes the share that has arrived, each time it is a step more.

    Of two samples in a row the lower counts: memory that is only tried out has not arrived.
    """

    def __init__(self, first_sample: int, expected_bytes: int) -> None:
        self._base = self._last_sample = first_sample
        self._expected_bytes = expected_bytes
        self._step_bytes = max(LEAST_STEP_BYTES, expected_bytes // STEPS)
        self._told_bytes = 0

    def feed(self, sample: int) -> float | None:
        settled, self._last_sample = min(sample, self._last_sample), sample
        arrived_bytes = min(settled - self._base, self._expected_bytes)
        if arrived_bytes < self._told_bytes + self._step_bytes:
            return None
        self._told_bytes = arrived_bytes
        return arrived_bytes / self._expected_bytes


@contextmanager
def watching(gauge: Gauge, stage: Stage, progress: Progress) -> Iterator[None]:
    """Tell the stage's beginning, and from a thread how it moves on until the block is left."""
    has_ended = threading.Event()
    meter = GrowthMeter(gauge.read(), gauge.expected_bytes)

    def watch() -> None:
        try:
            while not has_ended.wait(PERIOD_SECONDS):
                share = meter.feed(gauge.read())
                if share is not None:
                    _tell(stage, share, progress)
        except OSError:
            return  # the front is gone, and this process is about to be

    progress(stage.name, stage.start_percent, stage.start_bytes, stage.end_bytes)
    thread = threading.Thread(target=watch, name="load-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()  # nothing is told of a stage after its end


def _tell(stage: Stage, share: float, progress: Progress) -> None:
    percent = stage.start_percent + share * (stage.end_percent - stage.start_percent)
    bytes_done = stage.start_bytes + round(share * (stage.end_bytes - stage.start_bytes))
    progress(stage.name, round(percent, 2), bytes_done, stage.end_bytes)
