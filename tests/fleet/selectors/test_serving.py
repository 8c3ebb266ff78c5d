"""What a gateway sees of the fleet, and what reading it costs."""

from datetime import timedelta

import pytest

from fleet import selectors, services
from fleet.models import Alias, Cooldown, ModelProfile, Neuron
from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.backoff import LONGEST_COOLDOWN_SECONDS
from fleet.planner.phases import NeuronPhase, PlacementPhase
from neuron_agent.protocol import ErrorCode
from tests.fakes.neuron import Refusal as FakeRefusal
from tests.fleet.conftest import Driver, live, neuron_row, placements
from tests.world import BEAST, LARGE, LARGE_MB, PUNY, SMALL


def want(fleet: Driver, model_id: str) -> None:
    services.request_placement(model_id, "gateway-1", 1, fleet.clock(), lifetime_seconds=3600)


def test_the_view_holds_models_aliases_placements_and_neurons(fleet: Driver) -> None:
    services.set_neuron_token(neuron_row(PUNY).pk, "s3cret", fleet.clock())
    Alias.objects.create(name="local/large", profile=ModelProfile.objects.get(model_id=LARGE))
    want(fleet, LARGE)
    fleet.until(lambda: live(LARGE) == [(BEAST, "ready")])
    view = selectors.serving_view(fleet.clock())
    assert view.aliases == {"local/large": LARGE}
    (placement,) = view.placements
    assert placement.phase is PlacementPhase.READY
    assert placement.servable
    assert placement.desired_present
    assert placement.memory_bytes == LARGE_MB * 2**20
    neuron = view.neurons[placement.neuron_id]
    assert (neuron.name, neuron.dispatchable, neuron.token) == (BEAST, True, None)
    assert view.neurons[neuron_row(PUNY).pk].token == "s3cret"
    assert view.models[LARGE].limit_context == 32_768
    assert view.models[LARGE].feasible_on == (BEAST,)
    assert view.models[SMALL].feasible_on == (BEAST, PUNY)


@pytest.mark.parametrize("switch", [services.drain, services.report_unreachable])
def test_no_request_is_sent_to_a_neuron_that_drains_or_is_silent(fleet: Driver, switch) -> None:
    fleet.poll()
    beast = neuron_row(BEAST)
    arguments = ("refused",) if switch is services.report_unreachable else ()
    switch(beast.pk, *arguments, fleet.clock())
    assert not selectors.serving_view(fleet.clock()).neurons[beast.pk].dispatchable


def test_a_verdict_is_in_the_view_while_somebody_waits(fleet: Driver) -> None:
    ModelProfile.objects.filter(model_id=LARGE).update(vram_mb=100_000)
    want(fleet, LARGE)
    since = fleet.clock()
    fleet.settle(2)
    verdict = selectors.serving_view(fleet.clock()).verdicts[LARGE]
    assert (verdict.kind, verdict.since) == ("refuse", since)
    assert {r.code for r in verdict.refusals} == {RefusalCode.DEVICE_TOO_SMALL}
    assert all(isinstance(refusal, Refusal) for refusal in verdict.refusals)
    services.withdraw_demand(LARGE, "gateway-1")
    assert selectors.serving_view(fleet.clock()).verdicts == {}


def test_a_load_takes_the_verdict_away(fleet: Driver) -> None:
    want(fleet, SMALL)
    for name in (BEAST, PUNY):
        services.cordon(neuron_row(name).pk, fleet.clock())
    fleet.settle(2)
    assert SMALL in selectors.serving_view(fleet.clock()).verdicts
    services.uncordon(neuron_row(BEAST).pk, fleet.clock())
    fleet.until(lambda: live(SMALL))
    assert selectors.serving_view(fleet.clock()).verdicts == {}


def test_a_failed_load_is_told_while_its_neuron_cools_down(fleet: Driver) -> None:
    fleet.world.beast.knobs.refuse_load = FakeRefusal(422, ErrorCode.EMPTY_REPO, "no weights")
    services.set_enabled(neuron_row(PUNY).pk, False, fleet.clock())
    want(fleet, SMALL)
    fleet.until(lambda: placements(SMALL, phase="failed"))
    failure = selectors.serving_view(fleet.clock()).models[SMALL].failure
    assert failure is not None
    assert (failure.error_code, failure.error, failure.neuron) == (
        "empty_repo",
        "no weights",
        BEAST,
    )
    Cooldown.objects.update(until=fleet.clock() - timedelta(seconds=1))
    assert selectors.serving_view(fleet.clock()).models[SMALL].failure is None


def test_a_failure_of_long_ago_is_not_what_is_paused_for(fleet: Driver) -> None:
    fleet.world.beast.knobs.refuse_load = FakeRefusal(422, ErrorCode.EMPTY_REPO, "no weights")
    services.set_enabled(neuron_row(PUNY).pk, False, fleet.clock())
    want(fleet, SMALL)
    fleet.until(lambda: placements(SMALL, phase="failed"))
    ended_at = placements(SMALL, phase="failed")[0].ended_at
    Cooldown.objects.update(until=ended_at + timedelta(days=1))
    last = ended_at + timedelta(seconds=LONGEST_COOLDOWN_SECONDS)
    assert selectors.serving_view(last - timedelta(seconds=1)).models[SMALL].failure
    assert selectors.serving_view(last).models[SMALL].failure is None


def test_reading_costs_the_same_queries_however_large_the_fleet(
    fleet: Driver, django_assert_num_queries
) -> None:
    want(fleet, SMALL)
    fleet.settle(3)
    beast = neuron_row(BEAST)
    for number in range(5):
        profile = ModelProfile.objects.create(model_id=f"m{number}")
        profile.pinned_on.add(beast)
        Neuron.objects.create(name=f"n{number}", endpoint="http://127.0.0.1:1")
        Cooldown.objects.create(
            profile=profile, neuron=beast, until=fleet.clock() + timedelta(days=1)
        )
    with django_assert_num_queries(10):
        selectors.serving_view(fleet.clock())
    with django_assert_num_queries(7):
        selectors.fleet_snapshot(fleet.clock())


def test_the_snapshot_has_what_stopped_just_now_and_nothing_older(fleet: Driver) -> None:
    want(fleet, SMALL)
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    services.withdraw_demand(SMALL, "gateway-1")
    services.request_unload(SMALL, None, fleet.clock())
    fleet.until(lambda: live(SMALL) == [])
    (stopped,) = selectors.fleet_snapshot(fleet.clock()).placements
    assert stopped.free_before_bytes is not None
    fleet.clock.advance(5)
    assert selectors.fleet_snapshot(fleet.clock()).placements == ()


def test_a_measured_footprint_is_void_with_other_options(fleet: Driver) -> None:
    want(fleet, LARGE)
    fleet.until(lambda: live(LARGE) == [(BEAST, "ready")])
    snapshot = selectors.fleet_snapshot(fleet.clock())
    assert snapshot.profile(LARGE).learned_bytes == LARGE_MB * 2**20
    ModelProfile.objects.filter(model_id=LARGE).update(quant="int8")
    assert selectors.fleet_snapshot(fleet.clock()).profile(LARGE).learned_bytes is None


def test_what_counts_as_moving(fleet: Driver) -> None:
    fleet.poll()
    assert not selectors.is_anything_moving(fleet.clock())
    want(fleet, SMALL)
    assert selectors.is_anything_moving(fleet.clock())
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    services.withdraw_demand(SMALL, "gateway-1")
    assert not selectors.is_anything_moving(fleet.clock())
    services.request_unload(SMALL, None, fleet.clock())
    assert selectors.is_anything_moving(fleet.clock())
    fleet.world.beast.knobs.unload_seconds = float("inf")
    fleet.step()
    assert selectors.is_anything_moving(fleet.clock())
    Neuron.objects.filter(name=BEAST).update(phase=NeuronPhase.LOST)
    assert not selectors.is_anything_moving(fleet.clock())
