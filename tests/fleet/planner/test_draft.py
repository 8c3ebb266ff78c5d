from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.actions import Fail, Hold, Load, MarkLost, Refuse, Unload, UnloadReason
from fleet.planner.draft import Draft
from fleet.planner.snapshot import FleetSnapshot
from tests.fleet.planner.fleets import LAW, NOW, P, fleet, neuron, placed, shuffled, snapshots

UNLOAD = Unload(1, UnloadReason.IDLE, "", only_if_idle=True)


def test_each_decision_is_seen_by_the_next() -> None:
    draft = Draft(fleet([neuron()], placements=[placed(n, f"m{n}") for n in (1, 2, 3)]))
    draft.decide(UNLOAD)
    draft.decide(Fail(2, ""))
    draft.decide(MarkLost(3, ""))
    draft.decide(Load("new", 1, (0,), 7, "declared", ""))
    phases = [(p.model_id, p.phase) for p in draft.snapshot.placements]
    assert phases == [
        ("m1", P.DRAINING),
        ("m2", P.UNLOADING),
        ("m3", P.LOST),
        ("new", P.PENDING),
    ]
    assert len(draft.actions) == 4


def test_what_is_only_told_changes_nothing() -> None:
    draft = Draft(fleet([neuron()], placements=[placed(1, "a")]))
    before = draft.snapshot
    draft.decide(Hold("b", ()))
    draft.decide(Refuse("c", ()))
    assert draft.snapshot == before


def test_a_reservation_is_no_action_and_no_row() -> None:
    draft = Draft(fleet([neuron()], placements=[placed(1, "a")]))
    draft.reserve("b", 1, (0,), 7)
    draft.reserve("c", 1, (0,), 7)
    ids = [placement.id for placement in draft.snapshot.placements]
    assert draft.actions == []
    assert len(set(ids)) == 3
    assert all(id < 0 for id in ids[1:])
    assert draft.snapshot.placements[-1].phase_since == NOW


@LAW
@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_the_facts_is_forgotten(snapshot: FleetSnapshot, random: Random) -> None:
    assert Draft(snapshot).snapshot == Draft(shuffled(snapshot, random)).snapshot
