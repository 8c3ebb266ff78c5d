"""Filter, score and pick over the fleet; the laws of what fits are in test_room."""

from typing import Any

import pytest

from fleet.planner.actions import RefusalCode
from fleet.planner.eviction import Newcomer
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.planner.placement import Placeable, Unplaceable, feasible_neurons, find_place
from fleet.planner.room import Place, Room
from fleet.planner.snapshot import Cooldown, FleetSnapshot, NeuronView, ProfileView
from tests.fleet.planner.fleets import P, ago, device, fleet, model, neuron, placed


def find(
    snapshot: FleetSnapshot, model_id: str = "new", may_evict: bool = True
) -> Placeable | Unplaceable:
    newcomer = Newcomer(snapshot.profile(model_id))
    return find_place(newcomer, snapshot.neurons, snapshot, may_evict)


def place_of(snapshot: FleetSnapshot) -> Place:
    answer = find(snapshot)
    assert isinstance(answer, Placeable)
    return answer.place


def code_for(one: NeuronView, new: ProfileView, *others: Any, **facts: Any) -> RefusalCode:
    answer = find(fleet([one], [new], **facts))
    assert isinstance(answer, Unplaceable)
    (refusal,) = answer.refusals
    assert refusal.neuron == one.name
    assert refusal.detail
    return refusal.code


TWO = (device(0), device(1, usable=False))


@pytest.mark.parametrize(
    ("one", "new", "code"),
    [
        (neuron(enabled=False), model("new"), "disabled"),
        (neuron(), model("new", enabled=False), "disabled"),
        (neuron(), model("new", quarantined=True), "disabled"),
        (neuron(), model("new", max_placements=0), "disabled"),
        (neuron(cordoned=True), model("new"), "cordoned"),
        (neuron(draining=True), model("new"), "cordoned"),
        (neuron(), model("new", pinned_on=frozenset({"n2"})), "not_pinned_here"),
        (neuron(), model("new", harness="openai"), "harness_missing"),
        (neuron(), model("new", min_devices=2), "too_few_devices"),
        (neuron(), model("new", 25), "device_too_small"),
        (neuron(), model("new", 1, min_device_bytes=25), "device_too_small"),
        (neuron(phase=NeuronPhase.UNHEALTHY), model("new"), "unhealthy"),
        (neuron(phase=NeuronPhase.LOST), model("new"), "unhealthy"),
        (neuron(1, *TWO), model("new", min_devices=2), "device_poisoned"),
        (neuron(), model("new", cooldowns=(Cooldown(1, ago(-1)),)), "cooling_down"),
        (neuron(1, device(free=9)), model("new"), "memory_taken"),
    ],
)
def test_a_neuron_says_why_it_refuses(one: NeuronView, new: ProfileView, code: str) -> None:
    assert code_for(one, new) == RefusalCode(code)


@pytest.mark.parametrize("phase", sorted(set(P) - {P.STOPPED, P.FAILED}))
def test_a_neuron_takes_no_second_copy(phase: PlacementPhase) -> None:
    copy = placed(1, "new", 1, phase=phase)
    assert code_for(neuron(), model("new", 1), placements=[copy]) == RefusalCode.ALREADY_HERE


@pytest.mark.parametrize(
    ("there", "code"),
    [
        ({"in_flight": 1}, "busy_victims"),
        ({"since": 5.0}, "busy_victims"),  # too new to be moved already
        ({"phase": P.LOADING}, "busy_victims"),
        ({"phase": P.DRAINING, "ready_at": ago(60), "in_flight": 1}, "busy_victims"),
        ({"phase": P.DRAINING, "ready_at": ago(60)}, "memory_on_its_way"),
        ({"phase": P.STOPPED, "since": 1.0, "free_before_bytes": 4}, "memory_on_its_way"),
    ],
)
def test_what_is_there_may_have_to_be_waited_for(there: dict[str, Any], code: str) -> None:
    one = neuron(1, device(free=4))
    resident = placed(7, "old", 20, **there)
    assert code_for(one, model("new"), placements=[resident]) == RefusalCode(code)


def test_what_ranks_higher_or_is_pinned_may_not_be_displaced() -> None:
    for facts in ({"residency_priority": 300}, {"pinned": True}):
        snapshot = fleet(
            [neuron(1, device(free=4))],
            [model("new"), model("old", 20, **facts)],
            [placed(7, "old", 20)],
        )
        assert [r.code for r in find(snapshot).refusals] == [RefusalCode.OUTRANKED]


def test_a_neuron_never_heard_of_is_not_judged_by_its_hardware() -> None:
    unknown = NeuronView(1, "n1", NeuronPhase.UNKNOWN, devices=())
    assert code_for(unknown, model("new", min_devices=2)) == RefusalCode.UNHEALTHY


def test_lasting_reasons_are_told_before_passing_ones() -> None:
    one = neuron(phase=NeuronPhase.UNHEALTHY)
    assert code_for(one, model("new", 25)) == RefusalCode.DEVICE_TOO_SMALL


def test_a_cooldown_ends_and_is_only_for_its_neuron() -> None:
    for over in (Cooldown(1, ago(0)), Cooldown(2, ago(-60))):
        assert place_of(fleet([neuron()], [model("new", cooldowns=(over,))])).neuron.id == 1


def test_of_unknown_need_only_the_size_of_the_device_counts() -> None:
    new = model("new", None, min_device_bytes=24)
    small, large = neuron(1, device(total=16)), neuron(2, device(total=24, free=0))
    assert place_of(fleet([small, large], [new])).neuron.id == 2


def test_free_memory_goes_before_eviction_even_with_weights_elsewhere() -> None:
    full = neuron(1, device(free=4), models_on_disk=frozenset({"new"}))
    empty = neuron(2, device(free=10))
    place = place_of(fleet([full, empty], [model("new")], [placed(7, "old", 20)]))
    assert (place.neuron.id, place.room, place.victims) == (2, Room.FREE, ())


def test_memory_on_its_way_is_waited_for_before_anything_is_evicted_elsewhere() -> None:
    leaving = placed(7, "old", 20, phase=P.DRAINING, ready_at=ago(60))
    idle = placed(8, "other", 20, on=2)
    snapshot = fleet(
        [neuron(1, device(free=4)), neuron(2, device(free=4))], [model("new")], [leaving, idle]
    )
    answer = find(snapshot)
    assert isinstance(answer, Unplaceable)
    assert [(r.neuron, r.code) for r in answer.refusals] == [("n1", "memory_on_its_way")]
    assert answer.awaited is not None
    assert answer.awaited.neuron.id == 1


def test_weights_on_disk_go_before_free_memory() -> None:
    stocked = neuron(1, device(total=16), models_on_disk=frozenset({"new"}))
    assert place_of(fleet([stocked, neuron(2)], [model("new")])).neuron.id == 1


def test_the_cheapest_victims_decide_between_neurons() -> None:
    residents = [placed(7, "old", 20, used=30), placed(8, "older", 20, on=2, used=60)]
    full = [neuron(id, device(free=4)) for id in (1, 2)]
    assert [v.id for v in place_of(fleet(full, [model("new")], residents)).victims] == [8]


def test_most_free_memory_after_decides_then_the_name() -> None:
    roomy = neuron(2, device(total=24))
    assert place_of(fleet([neuron(1, device(total=16)), roomy], [model("new")])).neuron.id == 2
    twins = [neuron(1, name="zoe"), neuron(2, name="ann")]
    assert place_of(fleet(twins, [model("new")])).neuron.name == "ann"


def test_those_not_chosen_for_a_reason_are_named() -> None:
    answer = find(fleet([neuron(1, cordoned=True), neuron(2)], [model("new")]))
    assert [(r.neuron, r.code) for r in answer.refusals] == [("n1", RefusalCode.CORDONED)]


def test_a_caller_may_rule_out_evictions() -> None:
    snapshot = fleet([neuron(1, device(free=4))], [model("new")], [placed(7, "old", 20)])
    assert isinstance(find(snapshot), Placeable)
    assert isinstance(find(snapshot, may_evict=False), Unplaceable)


def test_no_neurons_no_place() -> None:
    assert find(fleet()) == Unplaceable(())


def test_feasible_is_where_only_passing_reasons_speak_against_it() -> None:
    neurons = [
        neuron(1, cordoned=True),
        neuron(2, device(total=8)),
        neuron(3, device(free=0)),
        neuron(4, phase=NeuronPhase.LOST),
        neuron(5, phase=NeuronPhase.UNKNOWN),
    ]
    assert feasible_neurons(model("a", 10), neurons) == ("n3", "n4")
    assert feasible_neurons(model("a", 10, quarantined=True), neurons) == ()
