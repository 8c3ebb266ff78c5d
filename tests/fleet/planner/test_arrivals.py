"""What is loaded for whom, what makes room for it, and what those who wait are told."""

from dataclasses import replace
from typing import Any

import pytest

from fleet.planner.actions import Action, Hold, Load, RefusalCode, Refuse, Unload, UnloadReason
from fleet.planner.phases import NeuronPhase
from fleet.planner.reconcile import plan
from fleet.planner.snapshot import FleetSnapshot
from tests.fleet.planner.fleets import P, ago, device, fleet, model, neuron, placed, waits


def loads(snapshot: FleetSnapshot) -> list[tuple[str, int]]:
    """Model and neuron of each load."""
    return [
        (action.model_id, action.neuron_id) for action in plan(snapshot) if isinstance(action, Load)
    ]


def only(snapshot: FleetSnapshot) -> Action:
    (action,) = plan(snapshot)
    return action


def test_what_is_waited_for_is_loaded_where_it_fits() -> None:
    snapshot = fleet([neuron()], [model("a", 10)], waiting=[waits("a")])
    assert only(snapshot) == Load("a", 1, (0,), 10, "declared", "1 waiting")


def test_a_model_missing_from_the_catalogue_is_loaded_too() -> None:
    load = only(fleet([neuron()], waiting=[waits("stray")]))
    assert isinstance(load, Load)
    assert (load.memory_bytes, load.memory_source) == (0, "unknown")


def test_nobody_waits_nothing_is_loaded() -> None:
    assert plan(fleet([neuron()], [model("a")])) == ()


@pytest.mark.parametrize("phase", [P.PENDING, P.LOADING, P.WARMING, P.RECOVERING, P.READY])
def test_one_copy_serves_all_who_wait(phase: P) -> None:
    there = placed(1, "a", phase=phase, since=5)
    waiting = [waits("a"), waits("a", 9), waits("a", 3)]
    assert plan(fleet([neuron(1), neuron(2)], [model("a")], [there], waiting)) == ()


@pytest.mark.parametrize("phase", [P.DRAINING, P.UNLOADING, P.LOST, P.STOPPED, P.FAILED])
def test_a_copy_that_is_going_serves_nobody(phase: P) -> None:
    there = placed(1, "a", phase=phase)
    snapshot = fleet([neuron(1), neuron(2)], [model("a")], [there], [waits("a")])
    assert [model_id for model_id, _ in loads(snapshot)] == ["a"]


def test_several_sources_of_waiting_make_one_load() -> None:
    snapshot = fleet([neuron(1), neuron(2)], [model("a")], waiting=[waits("a"), waits("a", 7)])
    load = only(snapshot)
    assert isinstance(load, Load)
    assert load.reason == "2 waiting"


def test_memory_spent_by_one_load_is_spent_for_the_next() -> None:
    snapshot = fleet(
        [neuron()], [model("a", 16), model("b", 16)], waiting=[waits("b", 9), waits("a", 3)]
    )
    first, second = plan(snapshot)
    assert isinstance(first, Load)
    assert first.model_id == "b"
    assert isinstance(second, Hold)
    assert [r.code for r in second.refusals] == [RefusalCode.BUSY_VICTIMS]


def test_the_longest_wait_is_served_first_and_before_standing_wishes() -> None:
    profiles = [model(id, 10) for id in "abc"] + [model("kept", 10, min_placements=1)]
    waiting = [waits("a", 1), waits("b", 9), waits("c", 5)]
    snapshot = fleet([neuron(1), neuron(2, device(total=10))], profiles, waiting=waiting)
    assert [model_id for model_id, _ in loads(snapshot)] == ["b", "c", "a"]


def test_victims_go_first_and_nothing_is_loaded_yet() -> None:
    snapshot = fleet(
        [neuron(1, device(free=4))], [model("a", 10)], [placed(7, "old", 20)], [waits("a")]
    )
    assert only(snapshot) == Unload(
        7,
        UnloadReason.EVICTED,
        "makes room for a (1 waiting)",
        only_if_idle=True,
        for_model_id="a",
        needed_bytes=10,
        freed_bytes=20,
    )


def test_a_later_pass_waits_for_the_memory_and_then_loads() -> None:
    going = placed(7, "old", 20, phase=P.UNLOADING, ready_at=ago(60), free_before_bytes=4)
    snapshot = fleet([neuron(1, device(free=4))], [model("a", 10)], [going], [waits("a")])
    hold = only(snapshot)
    assert isinstance(hold, Hold)
    assert [r.code for r in hold.refusals] == [RefusalCode.MEMORY_ON_ITS_WAY]
    gone = replace(snapshot, placements=(), neurons=(neuron(),))
    assert loads(gone) == [("a", 1)]


def test_two_newcomers_do_not_count_on_the_same_victim() -> None:
    residents = [placed(7, "old", 10, used=50), placed(8, "newer", 10, used=20)]
    snapshot = fleet(
        [neuron(1, device(free=4))],
        [model("a", 14), model("b", 14)],
        residents,
        [waits("a", 9), waits("b", 3)],
    )
    unload, hold = plan(snapshot)
    assert isinstance(unload, Unload)
    assert (unload.placement_id, unload.for_model_id) == (7, "a")
    assert isinstance(hold, Hold)
    assert hold.model_id == "b"


def test_a_later_want_does_not_take_what_an_earlier_one_waits_for() -> None:
    going = placed(7, "old", 12, phase=P.DRAINING, ready_at=ago(60))
    snapshot = fleet(
        [neuron(1, device(free=12))],
        [model("big", 24), model("small", 10)],
        [going],
        [waits("big", 9), waits("small", 3)],
    )
    assert [type(action) for action in plan(snapshot)] == [Hold, Hold]


def test_a_later_want_does_not_take_what_was_free_for_an_eviction() -> None:
    snapshot = fleet(
        [neuron(1, device(free=12))],
        [model("big", 24), model("small", 10), model("old", 12)],
        [placed(7, "old", 12)],
        [waits("big", 9), waits("small", 3)],
    )
    assert [type(action) for action in plan(snapshot)] == [Unload, Hold]


def test_what_cannot_be_placed_by_waiting_is_refused() -> None:
    refuse = only(fleet([neuron()], [model("a", 25)], waiting=[waits("a")]))
    assert isinstance(refuse, Refuse)
    assert [r.code for r in refuse.refusals] == [RefusalCode.DEVICE_TOO_SMALL]


def test_one_neuron_that_may_take_it_later_is_worth_waiting_for() -> None:
    later = neuron(2, phase=NeuronPhase.UNHEALTHY)
    snapshot = fleet([neuron(1, cordoned=True), later], [model("a")], waiting=[waits("a")])
    assert isinstance(only(snapshot), Hold)


def test_a_fleet_without_neurons_refuses() -> None:
    assert only(fleet(profiles=[model("a")], waiting=[waits("a")])) == Refuse("a", ())


@pytest.mark.parametrize("facts", [{"enabled": False}, {"quarantined": True}])
def test_a_disabled_or_quarantined_model_is_refused_even_if_it_is_there(
    facts: dict[str, bool],
) -> None:
    profile = model("a", min_placements=1, max_placements=1, **facts)
    refuse = only(fleet([neuron()], [profile], [placed(1, "a")], [waits("a")]))
    assert isinstance(refuse, Refuse)
    assert [r.code for r in refuse.refusals] == [RefusalCode.DISABLED]


def test_nothing_is_kept_of_a_disabled_model() -> None:
    assert plan(fleet([neuron()], [model("a", min_placements=1, enabled=False)])) == ()


def test_min_placements_are_spread_over_neurons() -> None:
    snapshot = fleet([neuron(1), neuron(2), neuron(3)], [model("a", min_placements=2)])
    assert loads(snapshot) == [("a", 1), ("a", 2)]


def test_min_placements_are_topped_up_and_what_is_missing_is_told_once() -> None:
    snapshot = fleet([neuron(1)], [model("a", min_placements=3)], [placed(1, "a")])
    hold = only(snapshot)
    assert isinstance(hold, Hold)
    assert [r.code for r in hold.refusals] == [RefusalCode.ALREADY_HERE]


def test_max_placements_limit_min_placements_and_operators() -> None:
    profile = model("a", min_placements=2, max_placements=1)
    neurons = [neuron(1), neuron(2)]
    assert plan(fleet(neurons, [profile], [placed(1, "a")])) == ()
    wish = fleet(neurons, [profile], [placed(1, "a")], [waits("a", on=2)])
    hold = only(wish)
    assert isinstance(hold, Hold)
    assert hold.on_neuron_id == 2
    assert [(r.neuron, r.code) for r in hold.refusals] == [("n1", RefusalCode.ALREADY_HERE)]


def test_an_operators_neuron_gets_a_copy_of_its_own() -> None:
    neurons, there = [neuron(1), neuron(2)], [placed(1, "a")]
    assert loads(fleet(neurons, [model("a")], there, [waits("a", on=2)])) == [("a", 2)]
    assert plan(fleet(neurons, [model("a")], there, [waits("a", on=1)])) == ()


def test_an_operators_neuron_is_the_only_one_asked() -> None:
    snapshot = fleet(
        [neuron(1, cordoned=True), neuron(2)], [model("a")], waiting=[waits("a", on=1)]
    )
    refuse = only(snapshot)
    assert isinstance(refuse, Refuse)
    assert refuse.on_neuron_id == 1
    assert [r.code for r in refuse.refusals] == [RefusalCode.CORDONED]


def test_a_wish_for_a_neuron_that_is_gone_is_refused() -> None:
    refuse = only(fleet([neuron(1)], [model("a")], waiting=[waits("a", on=9)]))
    assert refuse == Refuse("a", (), on_neuron_id=9)


def test_wanted_ones_of_a_lost_neuron_are_placed_elsewhere_at_once() -> None:
    lost = neuron(1, phase=NeuronPhase.LOST)
    profiles = [model("a"), model("kept", min_placements=1)]
    rows = [placed(1, "a"), placed(2, "kept")]
    snapshot = fleet([lost, neuron(2)], profiles, rows, [waits("a")])
    assert loads(snapshot) == [("a", 2), ("kept", 2)]


def silent_fleet(*others: Any, **facts: Any) -> FleetSnapshot:
    silent = neuron(1, phase=NeuronPhase.UNHEALTHY)
    profile = model("a", **facts)
    return fleet([silent, *others], [profile], [placed(1, "a")], [waits("a")])


def test_while_a_neuron_is_silent_requests_get_a_copy_where_room_is_free() -> None:
    assert loads(silent_fleet(neuron(2))) == [("a", 2)]


def test_for_a_silent_neuron_nothing_is_evicted_and_nobody_is_refused() -> None:
    crowded = silent_fleet(neuron(2, device(free=4)))
    resident = placed(7, "old", 20, on=2)
    snapshot = replace(crowded, placements=(*crowded.placements, resident))
    assert isinstance(only(snapshot), Hold)


def test_nobody_is_refused_while_a_silent_neuron_that_takes_nothing_new_has_a_copy() -> None:
    silent = neuron(1, phase=NeuronPhase.UNHEALTHY, cordoned=True)
    snapshot = fleet([silent], [model("a")], [placed(1, "a")], [waits("a")])
    assert isinstance(only(snapshot), Hold)


def test_a_silent_neurons_copy_counts_for_the_limit_and_for_standing_wishes() -> None:
    assert isinstance(only(silent_fleet(neuron(2), max_placements=1)), Hold)
    snapshot = replace(silent_fleet(neuron(2), min_placements=1), waiting=())
    assert plan(snapshot) == ()


def test_of_two_standing_wishes_of_one_rank_neither_displaces_the_other() -> None:
    profiles = [model(id, 20, min_placements=1) for id in "ab"]
    snapshot = fleet([neuron(1, device(free=4))], profiles, [placed(1, "a", 20)])
    refuse = only(snapshot)
    assert isinstance(refuse, Refuse)
    assert [r.code for r in refuse.refusals] == [RefusalCode.OUTRANKED]
