"""A model's phases and places: no illegal move, no place lost."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.devices.channel import ModelReady
from neuron_agent.errors import BadRequest, RateLimited, Unavailable
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


@pytest.mark.parametrize("phase", sorted(set(ModelPhase) - {ModelPhase.READY}))
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


def test_requests_that_belong_together_get_all_their_places_or_none() -> None:
    model = ready_model()
    both = model.admit_all(["1", "2"], "a")
    assert both[0].outputs is both[1].outputs
    with pytest.raises(Unavailable, match="saturated"):
        model.admit_all(["3", "4"], "a")
    assert model.requests.keys() == {"1", "2"}
    with pytest.raises(BadRequest) as caught:
        model.admit_all(["3", "4", "5", "6"], "a")
    assert caught.value.param == "n"
    assert model.rejected == {"saturated": 1, "too_many_choices": 1}


def test_one_caller_s_share_is_its_own_limit() -> None:
    model = ModelState(LoadRequest("m"), 2, 2, max_per_principal=1)
    model.become_ready(READY)
    model.admit("1", "a", "ann")
    assert model.num_places_for("ann") == 0
    assert model.num_places_for("bob") == 1
    with pytest.raises(RateLimited) as caught:
        model.admit("2", "a", "ann")
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.retry_after_seconds == 1
    model.admit("2", "a", "bob")
    assert model.rejected == {"over_share": 1}


def test_requests_are_believed_to_take_as_long_as_the_first_one_took() -> None:
    model = ready_model()
    model.admit("1", "a").submitted_at = time.monotonic() - 99.5
    model.release(model.requests["1"])
    assert model.retry_after_seconds == math.ceil(100 / 2)


def test_requests_the_device_never_saw_do_not_shorten_the_time_to_come_back() -> None:
    model = ready_model()
    model.admit("1", "a").submitted_at = time.monotonic() - 99.5
    model.release(model.requests["1"])
    for _ in range(1000):
        model.release(model.admit("refused for its length", "a"))
    assert model.retry_after_seconds == math.ceil(100 / 2)


def test_place_passes_from_one_request_to_the_next() -> None:
    model = ready_model()
    first = model.admit("1", "a", "ann")
    second = model.renew(first, "2")
    assert model.requests == {"2": second}
    assert (second.client_id, second.principal) == ("a", "ann")
    model.release(first)  # of whom it was is forgotten
    assert model.requests == {"2": second}
    model.release(second)
    with pytest.raises(Unavailable):
        model.renew(second, "3")
    assert not model.requests


def test_limit_is_what_the_cache_holds_where_the_model_could_do_more() -> None:
    model = new_model()
    assert model.context_tokens == 0
    model.become_ready(
        ModelReady("m", 1, context_tokens=100, kv_tokens=60, dtype="", load_seconds=1)
    )
    assert model.context_tokens == 60


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
