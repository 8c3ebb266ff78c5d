"""The laws of whole plans. What single rules do is in test_arrivals and test_departures."""

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.actions import Action, Hold, Load, RefusalCode, Refuse, Unload, UnloadReason
from fleet.planner.memory import device_memory
from fleet.planner.phases import ARRIVING, LIVE, NeuronPhase
from fleet.planner.reconcile import explain, plan
from fleet.planner.snapshot import FleetSnapshot, PlacementView, ProfileView
from tests.fleet.planner.fleets import (
    LAW,
    P,
    ago,
    consistent_snapshots,
    crowded_snapshots,
    device,
    fleet,
    model,
    neuron,
    placed,
    share_sum,
    shuffled,
    snapshots,
    waits,
)
from tests.fleet.planner.simulator import World


def evictions(actions: tuple[Action, ...]) -> list[Unload]:
    unloads = (action for action in actions if isinstance(action, Unload))
    return [action for action in unloads if action.reason is UnloadReason.EVICTED]


def loads(actions: tuple[Action, ...]) -> list[Load]:
    return [action for action in actions if isinstance(action, Load)]


def row(snapshot: FleetSnapshot, placement_id: int) -> PlacementView:
    return next(p for p in snapshot.placements if p.id == placement_id)


@LAW
@given(snapshots(), st.randoms(use_true_random=False))
def test_the_same_facts_in_any_order_give_the_same_plan(
    snapshot: FleetSnapshot, random: Random
) -> None:
    assert plan(snapshot) == plan(shuffled(snapshot, random))


@LAW
@given(snapshots())
def test_each_placement_is_acted_on_once_and_only_if_it_is_there(snapshot: FleetSnapshot) -> None:
    live = {p.id for p in snapshot.placements if p.phase in LIVE}
    acted_on = Counter(
        action.placement_id
        for action in plan(snapshot)
        if not isinstance(action, Load | Hold | Refuse)
    )
    assert set(acted_on) <= live
    assert all(number == 1 for number in acted_on.values())


@LAW
@given(snapshots())
def test_what_a_plan_loads_fits_together_in_what_is_free_now(snapshot: FleetSnapshot) -> None:
    arriving = [p for p in snapshot.placements if p.phase in ARRIVING]
    planned = loads(plan(snapshot))
    for one in snapshot.neurons:
        for each in one.devices:
            shares = [
                -(-load.memory_bytes // len(load.device_indexes))
                for load in planned
                if load.neuron_id == one.id and each.index in load.device_indexes
            ]
            there = [p for p in arriving if p.neuron_id == one.id]
            assert not shares or sum(shares) <= each.free_bytes - share_sum(each.index, there)


@LAW
@given(snapshots())
def test_loads_go_only_where_they_may(snapshot: FleetSnapshot) -> None:
    for load in loads(plan(snapshot)):
        one, profile = snapshot.neuron(load.neuron_id), snapshot.profile(load.model_id)
        assert one is not None
        assert one.enabled
        assert not one.cordoned
        assert not one.draining
        assert one.phase is NeuronPhase.HEALTHY
        assert not profile.pinned_on or one.name in profile.pinned_on
        assert profile.harness in one.harnesses
        assert profile.enabled
        assert not profile.quarantined
        assert all(c.until <= snapshot.now for c in profile.cooldowns if c.neuron_id == one.id)
        chosen = [d for d in one.devices if d.index in load.device_indexes]
        assert len(chosen) == profile.min_devices
        assert all(d.usable and d.total_bytes >= profile.min_device_bytes for d in chosen)


@LAW
@given(snapshots())
def test_a_model_is_loaded_once_on_a_neuron_and_within_its_limit(snapshot: FleetSnapshot) -> None:
    planned = Counter((load.model_id, load.neuron_id) for load in loads(plan(snapshot)))
    live = Counter((p.model_id, p.neuron_id) for p in snapshot.placements if p.phase in LIVE)
    assert all(number == 1 for number in (planned + live).values() if number > 0) or not planned
    for model_id in {model_id for model_id, _ in planned}:
        limit = snapshot.profile(model_id).max_placements
        num_planned = sum(load_id == model_id for load_id, _ in planned)
        assert limit is None or num_planned <= limit


@LAW
@given(snapshots())
def test_victims_are_idle_unpinned_settled_and_do_not_outrank(snapshot: FleetSnapshot) -> None:
    for eviction in evictions(plan(snapshot)):
        victim = row(snapshot, eviction.placement_id)
        profile = snapshot.profile(victim.model_id)
        assert eviction.for_model_id is not None
        assert eviction.only_if_idle
        newcomer = snapshot.profile(eviction.for_model_id)
        assert victim.phase is P.READY
        assert victim.idle
        assert not profile.pinned
        resident_since = victim.ready_at or victim.phase_since
        assert snapshot.now - resident_since >= snapshot.policy.min_residency
        assert profile.residency_priority <= newcomer.residency_priority


@LAW
@given(snapshots(), st.data())
def test_nothing_is_evicted_while_a_neuron_with_room_exists(
    snapshot: FleetSnapshot, data: st.DataObject
) -> None:
    """For one newcomer, judged by memory alone on neurons that nothing speaks against."""
    one_wish = with_one_wish(snapshot, data.draw(st.sampled_from(snapshot.profiles)).id)
    profile = one_wish.profile(one_wish.waiting[0].model_id)
    if evictions(plan(one_wish)):
        assert not [one for one in one_wish.neurons if has_room(one_wish, one.id, profile)]


def with_one_wish(snapshot: FleetSnapshot, model_id: str) -> FleetSnapshot:
    """The fleet without the model, one request waiting for it, and no other wish."""
    return replace(
        snapshot,
        profiles=tuple(
            replace(p, min_placements=0, cooldowns=(), pinned_on=frozenset())
            for p in snapshot.profiles
        ),
        placements=tuple(p for p in snapshot.placements if p.model_id != model_id),
        waiting=(waits(model_id),),
    )


def has_room(snapshot: FleetSnapshot, neuron_id: int, profile: ProfileView) -> bool:
    one = snapshot.neuron(neuron_id)
    assert one is not None
    if one.phase is not NeuronPhase.HEALTHY or not one.enabled or one.cordoned or one.draining:
        return False
    figures = (profile.learned_bytes, profile.declared_bytes, profile.estimated_bytes, 0)
    total_bytes = next(figure for figure in figures if figure is not None)
    share_bytes = -(-total_bytes // profile.min_devices)
    there = tuple(snapshot.placements_on(neuron_id))
    fitting = [
        each
        for each in one.devices
        if each.usable
        and each.total_bytes >= max(profile.min_device_bytes, share_bytes)
        and device_memory(each, there, snapshot).free_bytes >= share_bytes
    ]
    return profile.harness in one.harnesses and len(fitting) >= profile.min_devices


@LAW
@given(snapshots())
def test_who_waits_is_helped_or_told(snapshot: FleetSnapshot) -> None:
    actions = plan(snapshot)
    helped = {load.model_id for load in loads(actions)}
    helped |= {eviction.for_model_id or "" for eviction in evictions(actions)}
    told = {action.model_id for action in actions if isinstance(action, Hold | Refuse)}
    there = {p.model_id for p in snapshot.placements if p.phase in ARRIVING | {P.READY}}
    assert {waiting.model_id for waiting in snapshot.waiting} <= helped | told | there


@LAW
@given(snapshots())
def test_only_those_are_refused_whom_waiting_cannot_help(snapshot: FleetSnapshot) -> None:
    for action in plan(snapshot):
        if isinstance(action, Refuse):
            assert not any(refusal.code.passes for refusal in action.refusals)
        if isinstance(action, Hold):
            assert action.refusals


@LAW
@given(consistent_snapshots() | crowded_snapshots())
def test_a_fleet_comes_to_rest_when_nothing_new_is_wanted(snapshot: FleetSnapshot) -> None:
    world = World(snapshot)
    for _ in range(45):
        world.step()
    for _ in range(15):
        assert all(isinstance(action, Hold | Refuse) for action in world.step())


def test_two_models_take_turns_in_memory_for_one() -> None:
    world = World(fleet([neuron()], [model("a", 20), model("b", 20)]))
    served: list[str] = []
    for model_id in "abab":
        world.ask(model_id)
        for _ in range(12):
            world.step()
        assert not world.snapshot.waiting
        served += [p.model_id for p in world.snapshot.placements if p.phase is P.READY]
    assert served == ["a", "b", "a", "b"]


def test_a_model_that_is_generating_is_not_displaced() -> None:
    busy = placed(1, "a", 20, in_flight=1)
    world = World(fleet([neuron(1, device(free=4))], [model("a"), model("b", 20)], [busy]))
    world.ask("b")
    for _ in range(20):
        (hold,) = world.step()
        assert isinstance(hold, Hold)
        assert [r.code for r in hold.refusals] == [RefusalCode.BUSY_VICTIMS]


def test_a_wish_that_waits_for_one_of_two_neurons_empties_only_that() -> None:
    residents = [placed(1, "x", 20, used=90), placed(2, "y", 20, on=2, used=30)]
    neurons = [neuron(id, device(free=4)) for id in (1, 2)]
    world = World(fleet(neurons, [model("a", 20)], residents))
    world.ask("a")
    stopped = [e.placement_id for _ in range(12) for e in evictions(world.step())]
    assert stopped == [1]
    assert not world.snapshot.waiting


def test_the_least_recently_used_neuron_of_many_makes_room() -> None:
    neurons = [neuron(n, *(device(index, free=4) for index in range(8))) for n in range(30)]
    rows = [
        placed(8 * n + index, f"m{n}-{index}", 20, on=n, devices=(index,), used=60 + n + index)
        for n in range(30)
        for index in range(8)
    ]
    profiles = [model(p.model_id, 20) for p in rows] + [model("big", 80, min_devices=4)]
    stopped = evictions(plan(fleet(neurons, profiles, rows, [waits("big")])))
    assert [divmod(e.placement_id, 8) for e in stopped] == [(29, 7), (29, 6), (29, 5), (29, 4)]


def test_explain_says_where_a_model_would_go_and_why_not_elsewhere() -> None:
    snapshot = fleet(
        [neuron(1, cordoned=True), neuron(2, device(0, free=4), device(1, free=9))],
        [model("a", 20)],
        [placed(7, "old", 20, on=2)],
        [waits("a")],
    )
    explanation = explain(snapshot, "a")
    assert explanation.chosen_neuron == "n2"
    assert explanation.device_indexes == (0,)
    assert explanation.victims == (7,)
    assert (explanation.needed_bytes, explanation.memory_source) == (20, "declared")
    assert [(r.neuron, r.code) for r in explanation.refusals] == [("n1", RefusalCode.CORDONED)]
    assert explanation.facts == {"wanted": "1 waiting"}


def test_explain_names_the_copies_there_are_and_operators_wishes() -> None:
    there = placed(3, "a", phase=P.LOADING, since=5, devices=(0, 1), on=9)
    snapshot = fleet([neuron(9)], [model("a")], [there], [waits("a", on=9), waits("a", on=8)])
    explanation = explain(snapshot, "a")
    assert explanation.chosen_neuron is None
    assert [r.code for r in explanation.refusals] == [RefusalCode.ALREADY_HERE]
    assert explanation.facts == {
        "placement 3": "loading on n9, device(s) 0, 1",
        "wanted on n9": "1 waiting",
        "wanted on ?": "1 waiting",
    }


@LAW
@given(snapshots(), st.data())
def test_explain_and_plan_agree(snapshot: FleetSnapshot, data: st.DataObject) -> None:
    """With one wish and nothing of it there, what is explained is what is done."""
    model_id = data.draw(st.sampled_from(snapshot.profiles)).id
    one_wish = with_one_wish(snapshot, model_id)
    explanation, actions = explain(one_wish, model_id), plan(one_wish)
    assert {e.placement_id for e in evictions(actions)} == set(explanation.victims)
    names = {one.id: one.name for one in snapshot.neurons}
    planned = [(names[load.neuron_id], load.device_indexes) for load in loads(actions)]
    if explanation.chosen_neuron is None or explanation.victims:
        assert planned == []
    else:
        assert planned == [(explanation.chosen_neuron, explanation.device_indexes)]


def test_a_removed_copy_is_gone_for_the_explanation_too() -> None:
    removed = placed(7, "old", 20, desired_present=False, ready_at=ago(60))
    snapshot = fleet([neuron(1, device(free=4))], [model("a", 20)], [removed])
    codes = [r.code for r in explain(snapshot, "a").refusals]
    assert codes == [RefusalCode.MEMORY_ON_ITS_WAY]
