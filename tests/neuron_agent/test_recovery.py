"""Laws of what happens after a breakdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.config import WatchdogConfig
from neuron_agent.model_state import TRANSITIONS
from neuron_agent.protocol import ModelPhase
from neuron_agent.recovery import (
    MAX_INTERRUPTIONS,
    Fate,
    Silence,
    backoff_seconds,
    fate_of_model,
    is_given_up,
    recent,
)

WATCHDOG = WatchdogConfig(backoff_seconds=0.5, max_backoff_seconds=30.0, max_faults=3)
COUNTS = st.integers(0, MAX_INTERRUPTIONS + 3)


@given(st.sampled_from(list(ModelPhase)), st.booleans(), COUNTS)
def test_every_fate_is_a_move_the_model_may_make(
    phase: ModelPhase, had_begun: bool, count: int
) -> None:
    fate = fate_of_model(phase, had_begun, count)
    allowed = TRANSITIONS[phase] | {phase}
    if fate is Fate.RECOVERING:
        assert ModelPhase.RECOVERING in allowed
    if fate is Fate.FAILED:
        assert ModelPhase.FAILED in allowed


@given(st.booleans(), COUNTS)
def test_model_that_served_is_brought_back_however_often(had_begun: bool, count: int) -> None:
    assert fate_of_model(ModelPhase.READY, had_begun, count) is Fate.RECOVERING


@pytest.mark.parametrize("phase", [ModelPhase.LOADING, ModelPhase.WARMING, ModelPhase.RECOVERING])
def test_model_whose_load_keeps_breaking_devices_fails_in_the_end(phase: ModelPhase) -> None:
    counts = range(1, MAX_INTERRUPTIONS + 2)
    fates = [fate_of_model(phase, True, count) for count in counts]
    assert fates == [Fate.RECOVERING] * MAX_INTERRUPTIONS + [Fate.FAILED]


@given(COUNTS)
def test_load_that_had_not_begun_is_not_to_blame(count: int) -> None:
    assert fate_of_model(ModelPhase.LOADING, False, count) is Fate.WAITING


@pytest.mark.parametrize("phase", [ModelPhase.DRAINING, ModelPhase.UNLOADING])
def test_model_that_was_leaving_is_gone(phase: ModelPhase) -> None:
    assert fate_of_model(phase, False, 0) is Fate.GONE


def ticks_until_hung(silence: Silence) -> int:
    for num_ticks in range(100_000):
        if silence.is_too_long:
            return num_ticks
        silence.add_tick()
    raise AssertionError("it is never said to hang")


def test_patience_is_that_of_what_the_process_was_told_to_do() -> None:
    silence = Silence(WatchdogConfig(start_seconds=180, step_seconds=60, load_seconds=900))
    assert ticks_until_hung(silence) == 180
    silence.end()
    silence.note_started()
    assert ticks_until_hung(silence) == 60
    silence.note_load("a")
    silence.note_load("b")
    assert ticks_until_hung(silence) == 900
    silence.note_load_over("a")
    silence.end()
    assert ticks_until_hung(silence) == 900
    silence.note_load_over("b")
    silence.end()
    assert ticks_until_hung(silence) == 60


def test_a_load_gets_its_whole_time_whatever_the_silence_before_it() -> None:
    silence = Silence(WatchdogConfig(step_seconds=60, load_seconds=90))
    silence.note_started()
    for _ in range(59):
        silence.add_tick()
    silence.note_load("a")
    assert ticks_until_hung(silence) == 90


@given(st.integers(1, 5000))
def test_backoff_grows_to_its_bound(num_faults: int) -> None:
    now, later = backoff_seconds(num_faults, WATCHDOG), backoff_seconds(num_faults + 1, WATCHDOG)
    assert 0.5 <= now <= later <= 30.0
    assert later in (30.0, 2 * now)


@given(st.lists(st.floats(0, 10_000)), st.floats(0, 10_000))
def test_old_faults_are_forgiven(times: list[float], now: float) -> None:
    counted = recent(times, now, WATCHDOG)
    assert all(now - at <= WATCHDOG.fault_window_seconds for at in counted)
    assert len(times) - len(counted) == sum(
        now - at > WATCHDOG.fault_window_seconds for at in times
    )


def test_device_is_given_up_at_the_limit_and_not_before() -> None:
    assert [is_given_up(count, WATCHDOG) for count in range(5)] == [False] * 3 + [True] * 2
