"""A load that moves is seen to move, and one that stands still is not."""

import queue
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.engine.loading import progress
from neuron_agent.engine.loading.progress import (
    LEAST_STEP_BYTES,
    Gauge,
    GrowthMeter,
    Stage,
    anonymous_bytes,
    gauge_for,
    watching,
)

READING = Stage("reading", 0.0, 80.0, 0, 500)
GIGABYTE = 2**30


@pytest.fixture(autouse=True)
def _short_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PERIOD_SECONDS", 0.001)


def shares(samples: list[int], expected_bytes: int) -> list[float]:
    meter = GrowthMeter(samples[0], expected_bytes)
    told = [meter.feed(sample) for sample in samples[1:]]
    return [share for share in told if share is not None]


@given(st.lists(st.integers(0, 3 * GIGABYTE), min_size=1), st.integers(0, 2 * GIGABYTE))
def test_shares_only_rise_and_never_pass_the_whole(samples: list[int], expected_bytes: int) -> None:
    told = shares(samples, expected_bytes)
    assert told == sorted(set(told))
    assert all(0 < share <= 1 for share in told)


@given(st.integers(0, GIGABYTE), st.lists(st.integers(0, LEAST_STEP_BYTES - 1)))
def test_small_growth_is_no_progress(base: int, noise: list[int]) -> None:
    assert shares([base, *(base + extra for extra in noise)], GIGABYTE) == []


def test_a_load_that_moved_and_then_stands_still_is_silent_again() -> None:
    assert shares([0, GIGABYTE // 2, *[GIGABYTE // 2] * 50], GIGABYTE) == [0.5]


def test_memory_that_was_only_tried_out_has_not_arrived() -> None:
    assert shares([0, GIGABYTE, 0, 0, GIGABYTE, 0], GIGABYTE) == []


def test_a_steady_load_is_told_to_its_end() -> None:
    told = shares([part * GIGABYTE // 100 for part in range(102)], GIGABYTE)
    assert len(told) == 100
    assert told[-1] == 1.0


def test_a_stage_is_told_while_it_goes_on_and_no_more_after_it() -> None:
    told: queue.Queue[tuple[str, float, int, int]] = queue.Queue()
    samples = iter([0, GIGABYTE // 2])
    gauge = Gauge(lambda: next(samples, GIGABYTE // 2), GIGABYTE)
    with watching(gauge, READING, lambda *words: told.put(words)):
        assert told.get(timeout=30) == ("reading", 0.0, 0, 500)
        assert told.get(timeout=30) == ("reading", 40.0, 250, 500)
    assert told.empty()
    assert "load-watch" not in [thread.name for thread in threading.enumerate()]


def test_a_front_that_is_gone_ends_the_watch_quietly() -> None:
    has_failed = threading.Event()

    def tell(_stage: str, percent: float, *_bytes: int) -> None:
        if percent > 0:
            has_failed.set()
            raise BrokenPipeError

    samples = iter([0])
    gauge = Gauge(lambda: next(samples, GIGABYTE), GIGABYTE)
    with watching(gauge, READING, tell):
        assert has_failed.wait(30)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nobody counts the pages here")
def test_on_a_cpu_pages_of_the_weight_file_count(tmp_path: Path) -> None:
    size = 16 * 2**20
    (tmp_path / "weights").write_bytes(b"\1" * size)
    gauge = gauge_for(torch.device("cpu"), file_bytes=size, weight_bytes=2 * size)
    before = gauge.read()
    weights = torch.from_file(str(tmp_path / "weights"), size=size, dtype=torch.uint8)
    assert int(weights.sum()) == size
    grown = gauge.read() - before
    assert size * 0.9 <= grown <= size * 1.5
    assert gauge.expected_bytes == size


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nobody counts the pages here")
def test_memory_that_is_taken_shows_in_the_size_of_the_process() -> None:
    before, size = anonymous_bytes(), 64 * 2**20
    taken = torch.ones(size, dtype=torch.uint8)
    assert size * 0.9 <= anonymous_bytes() - before <= size * 1.5
    del taken
