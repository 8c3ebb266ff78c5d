"""Compare-and-set of phases, its losing side included."""

import pytest

from fleet.models import FleetEvent, ModelProfile, Neuron, Placement
from fleet.planner.phases import IllegalMove, NeuronPhase, PlacementPhase
from fleet.services.moves import move_neuron, move_placement
from tests.fleet.conftest import Notified
from tests.world import START

pytestmark = pytest.mark.django_db
_P = PlacementPhase


@pytest.fixture
def placement(db: None) -> Placement:
    return Placement.objects.create(
        profile=ModelProfile.objects.create(model_id="org/small"),
        neuron=Neuron.objects.create(name="beast", endpoint="http://beast:13131"),
        phase_since=START,
        requested_at=START,
    )


def read_again(placement: Placement) -> Placement:
    return Placement.objects.select_related("profile", "neuron").get(pk=placement.pk)


def test_a_move_is_written_with_its_event(placement: Placement) -> None:
    data = {"for": "org/large"}
    assert move_placement(placement, _P.LOADING, "why not", START, data=data, actor="owner")
    row = read_again(placement)
    assert (row.phase, row.generation, row.reason) == (_P.LOADING, 1, "why not")
    event = FleetEvent.objects.get()
    assert event.data == {"from": "pending", "to": "loading", "reason": "why not", **data}
    assert (event.model, event.neuron, event.placement, event.actor) == (
        "org/small",
        "beast",
        placement.pk,
        "owner",
    )


def test_the_instance_is_as_the_row_after_a_move(placement: Placement) -> None:
    move_placement(placement, _P.LOADING, "", START, changes={"percent": 10.0})
    row = read_again(placement)
    assert (placement.phase, placement.generation, placement.percent) == (
        row.phase,
        row.generation,
        row.percent,
    )
    assert move_placement(placement, _P.READY, "", START)


def test_who_comes_second_changes_nothing_and_is_told(placement: Placement) -> None:
    late = read_again(placement)
    assert move_placement(placement, _P.LOADING, "first", START)
    assert not move_placement(late, _P.FAILED, "second", START, changes={"error": "second"})
    row = read_again(placement)
    assert (row.phase, row.error) == (_P.LOADING, "")
    assert FleetEvent.objects.count() == 1


def test_the_same_phase_of_another_generation_is_another_state(placement: Placement) -> None:
    move_placement(placement, _P.READY, "", START)
    late = read_again(placement)
    move_placement(placement, _P.DRAINING, "", START)
    move_placement(placement, _P.READY, "busy", START)
    assert not move_placement(late, _P.DRAINING, "", START)


def test_an_illegal_move_is_a_bug(placement: Placement) -> None:
    move_placement(placement, _P.FAILED, "", START)
    with pytest.raises(IllegalMove):
        move_placement(placement, _P.READY, "", START)
    assert read_again(placement).ended_at == START


def test_a_long_reason_does_not_break_the_row(placement: Placement) -> None:
    assert move_placement(placement, _P.FAILED, "x" * 5000, START)
    assert len(read_again(placement).reason) == 300


def test_the_others_are_told_after_the_commit(
    placement: Placement, notified: Notified, django_capture_on_commit_callbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        move_placement(placement, _P.LOADING, "", START)
        assert notified.publications == 0
    assert notified.publications == 1


def test_a_neuron_moves_once_for_two_who_saw_it(placement: Placement) -> None:
    neuron, late = placement.neuron, Neuron.objects.get()
    assert move_neuron(neuron, NeuronPhase.HEALTHY, "", START)
    assert not move_neuron(late, NeuronPhase.UNHEALTHY, "", START)
    assert Neuron.objects.get().phase == NeuronPhase.HEALTHY
    assert FleetEvent.objects.count() == 1
