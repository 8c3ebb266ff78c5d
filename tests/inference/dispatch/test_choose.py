"""Laws of dispatch: only what may serve is picked, of that the least busy, then the lowest id."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.phases import PlacementPhase
from inference.dispatch.choose import Candidate, is_eligible, pick_placement

candidates = st.lists(
    st.builds(
        Candidate,
        placement_id=st.integers(1, 20),
        phase=st.sampled_from([PlacementPhase.READY] * 6 + list(PlacementPhase)),
        desired_present=st.sampled_from([True, True, True, False]),
        servable=st.sampled_from([True, True, True, False]),
        neuron_dispatchable=st.sampled_from([True, True, True, False]),
        breaker_closed=st.sampled_from([True, True, True, False]),
        must_yield=st.sampled_from([False, False, False, True]),
        load=st.integers(0, 3),
    ),
    max_size=6,
    unique_by=lambda candidate: candidate.placement_id,
)


@given(candidates, st.sets(st.integers(1, 20), max_size=4))
def test_the_pick_is_eligible_not_excluded_and_least_busy(
    offered: list[Candidate], excluded: set[int]
) -> None:
    picked = pick_placement(offered, excluded)
    allowed = [c for c in offered if is_eligible(c) and c.placement_id not in excluded]
    if picked is None:
        assert not allowed
        return
    chosen = next(c for c in offered if c.placement_id == picked)
    assert chosen in allowed
    assert all(
        (chosen.load, chosen.placement_id) <= (other.load, other.placement_id) for other in allowed
    )


@given(candidates, st.randoms(use_true_random=False))
def test_the_order_of_candidates_makes_no_difference(
    offered: list[Candidate], random: Random
) -> None:
    shuffled = list(offered)
    random.shuffle(shuffled)
    assert pick_placement(shuffled) == pick_placement(offered)


def test_each_condition_alone_rules_a_placement_out() -> None:
    fine = Candidate(1, PlacementPhase.READY, True, True, True, True, False, 0)
    assert is_eligible(fine)
    for change in (
        {"phase": PlacementPhase.DRAINING},
        {"phase": PlacementPhase.RECOVERING},
        {"desired_present": False},
        {"servable": False},
        {"neuron_dispatchable": False},
        {"breaker_closed": False},
        {"must_yield": True},
    ):
        assert not is_eligible(fine._replace(**change))
