from datetime import timedelta
from typing import Any

import pytest

from fleet.planner.actions import Action, Fail, MarkLost, Unload, UnloadReason
from fleet.planner.phases import ARRIVING, ENDED, LEAVING, NeuronPhase, PlacementPhase
from fleet.planner.reconcile import plan
from fleet.planner.snapshot import FleetSnapshot, PlacementView
from tests.fleet.planner.fleets import P, ago, fleet, model, neuron, placed, waits

TTL = timedelta(seconds=30)


def unloaded(snapshot: FleetSnapshot) -> list[tuple[int, UnloadReason, bool]]:
    """Placement, reason and whether only if idle: all that `plan` says must go."""
    return [
        (action.placement_id, action.reason, action.only_if_idle)
        for action in plan(snapshot)
        if isinstance(action, Unload)
    ]


def actions_on(placement: PlacementView, **neuron_facts: Any) -> tuple[Action, ...]:
    kept = model("a", min_placements=1)  # so that nothing is withdrawn
    return plan(fleet([neuron(1, **neuron_facts)], [kept], [placement]))


@pytest.mark.parametrize("phase", sorted(set(P) - ENDED - {P.LOST}))
def test_a_lost_neuron_takes_its_placements_with_it(phase: PlacementPhase) -> None:
    first = actions_on(placed(1, "a", phase=phase), phase=NeuronPhase.LOST)[0]
    assert first == MarkLost(1, "n1 has not been heard of")


@pytest.mark.parametrize("phase", [P.LOST, P.STOPPED, P.FAILED])
def test_what_ended_or_is_lost_is_not_lost_again(phase: PlacementPhase) -> None:
    actions = actions_on(placed(1, "a", phase=phase), phase=NeuronPhase.LOST)
    assert not [action for action in actions if isinstance(action, MarkLost)]


def test_an_unhealthy_neuron_keeps_its_placements() -> None:
    assert actions_on(placed(1, "a"), phase=NeuronPhase.UNHEALTHY) == ()


def test_a_placement_without_a_neuron_is_lost() -> None:
    (action,) = plan(fleet(placements=[placed(1, "a")]))
    assert isinstance(action, MarkLost)


@pytest.mark.parametrize("phase", sorted(ARRIVING))
def test_a_load_that_stands_still_fails(phase: PlacementPhase) -> None:
    still = placed(1, "a", phase=phase, since=900, progress_at=ago(300))
    failed = actions_on(still)[0]
    assert failed == Fail(1, f"no progress for 300 s ({phase})")


@pytest.mark.parametrize("phase", sorted(ARRIVING))
def test_a_load_may_take_long_while_it_moves(phase: PlacementPhase) -> None:
    moved = placed(1, "a", phase=phase, since=900, progress_at=ago(299))
    begun = placed(1, "a", phase=phase, since=299, progress_at=ago(400))
    assert actions_on(moved) == actions_on(begun) == ()


@pytest.mark.parametrize("phase", sorted({P.READY} | ARRIVING))
def test_what_an_operator_removed_goes_though_it_is_busy_or_pinned(phase: PlacementPhase) -> None:
    placement = placed(1, "a", phase=phase, since=5, desired_present=False, in_flight=3)
    snapshot = fleet([neuron()], [model("a", pinned=True)], [placement])
    assert unloaded(snapshot) == [(1, UnloadReason.OPERATOR, False)]


@pytest.mark.parametrize("facts", [{"draining": True}, {"enabled": False}])
def test_a_draining_or_disabled_neuron_is_emptied(facts: dict[str, bool]) -> None:
    placement = placed(1, "a", in_flight=1)
    snapshot = fleet([neuron(1, **facts)], [model("a")], [placement])
    assert unloaded(snapshot) == [(1, UnloadReason.DRAINED, False)]


@pytest.mark.parametrize(
    ("placement_facts", "neuron_facts", "reason"),
    [
        ({"desired_present": False}, {}, UnloadReason.OPERATOR),
        ({}, {"draining": True}, UnloadReason.DRAINED),
        ({}, {"enabled": False}, UnloadReason.DRAINED),
    ],
)
@pytest.mark.parametrize("phase", [P.READY, P.LOST])
def test_what_is_lost_and_not_wanted_there_goes(
    phase: PlacementPhase,
    placement_facts: dict[str, bool],
    neuron_facts: dict[str, bool],
    reason: UnloadReason,
) -> None:
    dead = neuron(1, phase=NeuronPhase.LOST, **neuron_facts)
    snapshot = fleet([dead], [model("a")], [placed(1, "a", phase=phase, **placement_facts)])
    assert unloaded(snapshot) == [(1, reason, False)]


def test_what_is_lost_and_wanted_may_come_back() -> None:
    dead = neuron(1, phase=NeuronPhase.LOST)
    assert plan(fleet([dead], [model("a")], [placed(1, "a", phase=P.LOST)])) == ()


def test_a_cordoned_neuron_keeps_what_it_has() -> None:
    assert unloaded(fleet([neuron(cordoned=True)], [model("a")], [placed(1, "a")])) == []


@pytest.mark.parametrize("phase", sorted(LEAVING))
def test_what_is_leaving_is_not_told_again(phase: PlacementPhase) -> None:
    placement = placed(1, "a", phase=phase, desired_present=False)
    assert unloaded(fleet([neuron()], [model("a")], [placement])) == []


def test_a_load_nobody_wants_any_more_is_not_started() -> None:
    pending = placed(1, "a", phase=P.PENDING, since=1)
    snapshot = fleet([neuron()], [model("a")], [pending])
    assert unloaded(snapshot) == [(1, UnloadReason.UNWANTED, False)]


@pytest.mark.parametrize("phase", sorted(ARRIVING - {P.PENDING}))
def test_a_load_that_began_survives_those_who_asked(phase: PlacementPhase) -> None:
    assert plan(fleet([neuron()], [model("a")], [placed(1, "a", phase=phase, since=1)])) == ()


def test_a_pending_load_stays_while_somebody_waits_or_it_is_kept() -> None:
    pending = placed(1, "a", phase=P.PENDING, since=1)
    assert unloaded(fleet([neuron()], [model("a")], [pending], [waits("a")])) == []
    assert unloaded(fleet([neuron()], [model("a", min_placements=1)], [pending])) == []


def idle_for(seconds: float, **facts: Any) -> PlacementView:
    return placed(1, "a", used=seconds, **facts)


def test_what_was_idle_for_its_time_goes_if_it_is_still_idle() -> None:
    snapshot = fleet([neuron()], [model("a", idle_ttl=TTL)], [idle_for(30)])
    assert unloaded(snapshot) == [(1, UnloadReason.IDLE, True)]


@pytest.mark.parametrize(
    ("placement", "profile", "waiting"),
    [
        (idle_for(29), {}, []),
        (idle_for(99), {"idle_ttl": None}, []),
        (idle_for(99, in_flight=1), {}, []),
        (idle_for(99, queued=1), {}, []),
        (idle_for(99, phase=P.LOADING, since=5), {}, []),
        (idle_for(99), {"pinned": True}, []),
        (idle_for(99), {"min_placements": 1}, []),
        (idle_for(99), {}, [waits("a")]),
        (idle_for(99, since=10), {}, []),  # ready since less than that
    ],
)
def test_an_idle_placement_stays_for_a_reason(
    placement: PlacementView, profile: dict[str, Any], waiting: list[Any]
) -> None:
    facts = {"idle_ttl": TTL, **profile}
    snapshot = fleet([neuron()], [model("a", **facts)], [placement], waiting)
    assert unloaded(snapshot) == []


def test_idle_ones_go_oldest_first_and_only_down_to_the_minimum() -> None:
    copies = [placed(n, "a", on=n, used=100 * n) for n in (1, 2, 3)]
    profile = model("a", idle_ttl=TTL, min_placements=1)
    snapshot = fleet([neuron(n) for n in (1, 2, 3)], [profile], copies)
    assert [one for one, *_ in unloaded(snapshot)] == [3, 2]


def test_a_silent_neurons_copy_does_not_let_the_last_healthy_one_go() -> None:
    copies = [placed(n, "a", on=n, used=100) for n in (1, 2)]
    profile = model("a", idle_ttl=TTL, min_placements=1)
    silent = neuron(2, phase=NeuronPhase.UNHEALTHY)
    assert unloaded(fleet([neuron(1), silent], [profile], copies)) == []


def test_surplus_goes_least_recently_used_first_and_when_idle() -> None:
    copies = [placed(n, "a", on=n, used=100 * n, in_flight=int(n == 3)) for n in (1, 2, 3)]
    snapshot = fleet([neuron(n) for n in (1, 2, 3)], [model("a", max_placements=2)], copies)
    assert unloaded(snapshot) == [(2, UnloadReason.SURPLUS, True)]


def test_a_copy_being_loaded_does_not_make_a_ready_one_surplus() -> None:
    copies = [placed(1, "a"), placed(2, "a", on=2, phase=P.LOADING, since=5)]
    snapshot = fleet([neuron(1), neuron(2)], [model("a", max_placements=1)], copies)
    assert unloaded(snapshot) == []
