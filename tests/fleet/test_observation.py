"""Laws of merging a neuron's report with what is on record."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.observation import (
    Found,
    Gone,
    Interrupted,
    Known,
    Report,
    Seen,
    merge_report,
    observed_phase,
)
from fleet.planner.phases import ARRIVING, ENDED, LIVE, PlacementPhase, check_placement_move
from neuron_agent.protocol import Health, ModelHealth, ModelInfo, ModelPhase
from tests.world import START

MODELS = ("a", "b", "c", "d")
_P = PlacementPhase
_M = ModelPhase


def info(model_id: str, phase: ModelPhase = _M.READY) -> ModelInfo:
    return ModelInfo(model_id, "torch", phase, (0,))


def report(*models: ModelInfo) -> Report:
    loads = tuple(ModelHealth(model.id, 1, 2, 8, 8) for model in models)
    return Report(START, Health("boot", 1.0, (), loads, 0), models)


phases = st.sampled_from(sorted(LIVE))
reports = st.dictionaries(st.sampled_from(MODELS), st.sampled_from(list(ModelPhase))).map(
    lambda found: report(*(info(model_id, phase) for model_id, phase in found.items()))
)
records = st.dictionaries(
    st.sampled_from(MODELS), st.tuples(phases, st.integers(-5, 5)), max_size=4
).map(
    lambda rows: [
        Known(number, model_id, PlacementPhase(phase), START + timedelta(seconds=age))
        for number, (model_id, (phase, age)) in enumerate(rows.items())
    ]
)


@given(phases, st.sampled_from(list(ModelPhase)))
def test_a_report_never_asks_for_an_illegal_move(phase: str, reported: ModelPhase) -> None:
    target = observed_phase(PlacementPhase(phase), reported)
    if target is not None:
        check_placement_move(PlacementPhase(phase), target)


@given(phases, st.sampled_from(list(ModelPhase)))
def test_a_report_taken_in_twice_changes_nothing_more_or_goes_on(
    phase: str, reported: ModelPhase
) -> None:
    """Repeating one report ends in a phase that it leaves alone."""
    current = PlacementPhase(phase)
    for _ in range(3):
        target = observed_phase(current, reported)
        if target is None or target in ENDED:
            return
        current = target
    assert observed_phase(current, reported) is None


@pytest.mark.parametrize(
    ("phase", "reported", "expected"),
    [
        (_P.PENDING, _M.LOADING, _P.LOADING),
        (_P.PENDING, _M.READY, _P.READY),
        (_P.PENDING, _M.FAILED, None),
        (_P.LOADING, _M.WARMING, _P.WARMING),
        (_P.LOADING, _M.FAILED, _P.FAILED),
        (_P.WARMING, _M.LOADING, None),
        (_P.READY, _M.READY, None),
        (_P.READY, _M.WARMING, _P.RECOVERING),
        (_P.READY, _M.RECOVERING, _P.RECOVERING),
        (_P.READY, _M.UNLOADING, _P.DRAINING),
        (_P.RECOVERING, _M.WARMING, _P.WARMING),
        (_P.DRAINING, _M.READY, None),
        (_P.DRAINING, _M.UNLOADING, _P.UNLOADING),
        (_P.UNLOADING, _M.READY, None),
        (_P.LOST, _M.READY, _P.READY),
        (_P.LOST, _M.UNLOADING, _P.STOPPED),
    ],
)
def test_what_a_report_does_to_a_phase(
    phase: PlacementPhase, reported: ModelPhase, expected: PlacementPhase | None
) -> None:
    assert observed_phase(phase, reported) is expected


@given(records, reports)
def test_nothing_is_said_of_what_changed_after_the_question(
    known: list[Known], said: Report
) -> None:
    changes = merge_report(known, frozenset(), said, False)
    newer = {placement.id for placement in known if placement.phase_since > said.asked_at}
    assert newer.isdisjoint(c.placement_id for c in changes if not isinstance(c, Found))


@given(records, reports)
def test_every_older_placement_is_seen_or_gone_and_no_model_twice(
    known: list[Known], said: Report
) -> None:
    changes = merge_report(known, frozenset(), said, False)
    there = {model.id for model in said.models}
    for placement in known:
        mine = [c for c in changes if not isinstance(c, Found) and c.placement_id == placement.id]
        if placement.phase_since > said.asked_at:
            continue
        if placement.model_id in there:
            assert [type(change) for change in mine] == [Seen]
        else:
            was_coming = placement.phase in ARRIVING | {_P.LOST}
            end = [Interrupted if was_coming else Gone]
            assert [type(c) for c in mine] == ([] if placement.phase is _P.PENDING else end)
    found = [change.info.id for change in changes if isinstance(change, Found)]
    assert set(found).isdisjoint(placement.model_id for placement in known)


def test_a_model_that_just_ended_here_is_not_found_again() -> None:
    assert merge_report([], frozenset({"a"}), report(info("a")), False) == ()
    (change,) = merge_report([], frozenset(), report(info("a")), False)
    assert isinstance(change, Found)
    assert change.phase is _P.READY


def test_what_failed_or_leaves_is_not_adopted() -> None:
    leaving = report(info("a", _M.FAILED), info("b", _M.DRAINING), info("c", _M.UNLOADING))
    assert merge_report([], frozenset(), leaving, False) == ()


@pytest.mark.parametrize(
    ("phase", "is_new_boot", "reason"),
    [
        (_P.READY, False, "gone from the neuron"),
        (_P.READY, True, "the neuron was restarted"),
        (_P.UNLOADING, False, "unloaded"),
        (_P.LOST, True, "the neuron came back without it"),
    ],
)
def test_why_a_model_is_gone(phase: PlacementPhase, is_new_boot: bool, reason: str) -> None:
    known = [Known(1, "a", phase, START - timedelta(seconds=1), was_ready=True)]
    assert merge_report(known, frozenset(), report(), is_new_boot) == (Gone(1, reason),)


@pytest.mark.parametrize("phase", [_P.LOADING, _P.WARMING, _P.RECOVERING, _P.LOST])
def test_a_load_that_vanishes_is_no_ordinary_end(phase: PlacementPhase) -> None:
    known = [Known(1, "a", phase, START - timedelta(seconds=1))]
    (change,) = merge_report(known, frozenset(), report(), True)
    assert isinstance(change, Interrupted)
