import pytest

from fleet.planner.phases import NeuronPhase
from fleet.planner.wanted import (
    Want,
    num_to_keep,
    on_healthy_neurons,
    staying_placements,
    wants,
)
from tests.fleet.planner.fleets import P, fleet, model, neuron, placed, waits


def test_who_waits_comes_first_and_standing_wishes_by_rank() -> None:
    snapshot = fleet(
        profiles=[
            model("low", min_placements=1, residency_priority=50),
            model("high", min_placements=2, residency_priority=300),
            model("a"),
        ],
        waiting=[waits("a", 9), waits("a", 5, on=2), waits("a", 1)],
    )
    assert list(wants(snapshot)) == [
        Want("a", "2 waiting"),
        Want("a", "1 waiting", on_neuron_id=2),
        Want("high", "min_placements 2", is_standing=True),
        Want("high", "min_placements 2", is_standing=True),
        Want("low", "min_placements 1", is_standing=True),
    ]


@pytest.mark.parametrize(
    ("limit", "is_enabled", "is_quarantined", "number"),
    [(None, True, False, 2), (1, True, False, 1), (None, False, False, 0), (None, True, True, 0)],
)
def test_no_more_is_kept_than_allowed(
    limit: int | None, is_enabled: bool, is_quarantined: bool, number: int
) -> None:
    profile = model(
        "a",
        min_placements=2,
        max_placements=limit,
        enabled=is_enabled,
        quarantined=is_quarantined,
    )
    assert num_to_keep(profile) == number


def test_what_comes_and_what_is_there_stays_but_a_silent_neuron_is_not_healthy() -> None:
    rows = [placed(n, "a", on=n, phase=phase) for n, phase in enumerate(P, start=1)]
    snapshot = fleet([neuron(1), neuron(4, phase=NeuronPhase.UNHEALTHY)], placements=rows)
    staying = staying_placements("a", snapshot)
    assert {row.phase for row in staying} == {
        P.PENDING,
        P.LOADING,
        P.WARMING,
        P.READY,
        P.RECOVERING,
    }
    assert [row.id for row in on_healthy_neurons(staying, snapshot)] == [1]
