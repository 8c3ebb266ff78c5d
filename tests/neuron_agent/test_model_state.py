"""A model's phases and places: no illegal move, no place lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.devices.channel import ModelReady
from neuron_agent.errors import Unavailable
from neuron_agent.model_state import TRANSITIONS, IllegalMove, ModelState
from neuron_agent.protocol import LoadFailure, LoadProgress, LoadRequest, ModelPhase

READY = ModelReady("m", 1, 100, 100, "float32", 0.1)


def new_model(max_in_flight: int = 2, max_queue_depth: int = 1) -> ModelState:
    return ModelState(LoadRequest("m"), max_in_flight, max_queue_depth)


def ready_model() -> ModelState:
    model = new_model()
    model.become_ready(READY)
    return model


def test_every_phase_has_its_transitions() -> None:
    assert TRANSITIONS.keys() == set(ModelPhase)


@given(st.lists(st.sampled_from(list(ModelPhase)), max_size=8))
def test_only_legal_moves_are_made(phases: list[ModelPhase]) -> None:
    model = new_model()
    for phase in phases:
        before = model.phase
        if phase in TRANSITIONS[before]:
            model.move(phase)
            assert model.phase is phase
        else:
            with pytest.raises(IllegalMove):
                model.move(phase)
            assert model.phase is before


@given(st.lists(st.floats(0, 1000)))
def test_drain_only_ever_gets_shorter(times: list[float]) -> None:
    model = ready_model()
    model.move(ModelPhase.DRAINING)
    model.drain_until = 500.0
    for until in times:
        model.shorten_drain(until)
    assert model.drain_until == min([500.0, *times])


@pytest.mark.parametrize("phase", set(ModelPhase) - {ModelPhase.READY})
def test_only_a_ready_model_takes_requests(phase: ModelPhase) -> None:
    model = new_model()
    model.phase = phase
    with pytest.raises(Unavailable) as caught:
        model.admit("1", "a")
    assert caught.value.retry_after_seconds
    assert not model.requests


@given(st.lists(st.integers(-5, 5), max_size=30))
def test_places_are_bounded_and_given_back(steps: list[int]) -> None:
    model = ready_model()
    admitted = []
    for number, step in enumerate(steps):
        if step < 0 and admitted:
            model.release(admitted.pop(step % len(admitted)))
        elif step >= 0 and len(admitted) < 3:
            admitted.append(model.admit(str(number), "a"))
        elif step >= 0:
            with pytest.raises(Unavailable, match="saturated"):
                model.admit(str(number), "a")
        assert len(admitted) == model.num_in_flight + model.num_queued <= 3
        assert model.num_in_flight <= 2
        model.check_integrity()
    for request in admitted * 2:  # twice: releasing again is harmless
        model.release(request)
    assert model.num_in_flight == model.num_queued == 0


@given(st.lists(st.floats(0, 100), max_size=10))
def test_progress_never_falls(percents: list[float]) -> None:
    model = new_model()
    shown = []
    for percent in percents:
        model.show(LoadProgress("reading", percent))
        assert model.progress is not None
        shown.append(model.progress.percent)
    assert shown == sorted(shown)


def test_recovery_starts_a_new_bar() -> None:
    model = ready_model()
    assert model.progress is None
    model.move(ModelPhase.RECOVERING)
    model.show(LoadProgress("reading", 30.0))
    assert model.progress is not None
    assert model.progress.percent == 30.0


def test_failed_model_says_why() -> None:
    model = new_model()
    model.fail(LoadFailure("does_not_fit", "too big"))
    assert (model.phase, model.progress) == (ModelPhase.FAILED, None)
    assert model.failure is not None
