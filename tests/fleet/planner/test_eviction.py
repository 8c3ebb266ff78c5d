from collections.abc import Mapping
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.eviction import (
    Newcomer,
    choose_victims,
    eviction_order,
    freed_bytes,
    is_evictable_now,
    last_used_at,
    may_displace,
)
from fleet.planner.phases import PlacementPhase
from fleet.planner.snapshot import EvictionStrategy, PlacementView
from tests.fleet.planner.fleets import LAW, P, ago, fleet, model, placed, waits

DEVICES = (0, 1, 2)


@st.composite
def residents(draw: st.DrawFn) -> list[PlacementView]:
    device_sets = st.sets(st.sampled_from(DEVICES), min_size=1)
    sizes = st.integers(0, 12)
    return [
        placed(number, f"m{number}", draw(sizes), devices=tuple(sorted(draw(device_sets))))
        for number in range(draw(st.integers(0, 6)))
    ]


lacks = st.dictionaries(st.sampled_from(DEVICES), st.integers(-5, 20), min_size=1)


def suffice(victims: tuple[PlacementView, ...], lacking: Mapping[int, int]) -> bool:
    return all(
        sum(v.bytes_per_device for v in victims if index in v.device_indexes) >= lack
        for index, lack in lacking.items()
    )


@LAW
@given(residents(), lacks)
def test_victims_suffice_and_none_can_be_spared(
    candidates: list[PlacementView], lacking: dict[int, int]
) -> None:
    victims = choose_victims(lacking, candidates)
    if victims is None:
        assert not suffice(tuple(candidates), lacking)
        return
    assert suffice(victims, lacking)
    assert set(victims) <= set(candidates)
    for fewer in combinations(victims, max(0, len(victims) - 1)):
        assert fewer == victims or not suffice(fewer, lacking)


@LAW
@given(residents(), lacks)
def test_victims_come_from_the_front_of_the_order(
    candidates: list[PlacementView], lacking: dict[int, int]
) -> None:
    victims = choose_victims(lacking, candidates)
    if victims:
        last = candidates.index(victims[-1])
        assert not suffice(tuple(candidates[:last]), lacking)


def test_a_large_late_victim_spares_small_early_ones() -> None:
    small, smaller, large = (placed(1, "s", 4), placed(2, "t", 3), placed(3, "l", 10))
    assert choose_victims({0: 10}, [small, smaller, large]) == (large,)


def test_of_two_that_would_do_the_later_in_order_is_spared() -> None:
    first, second, large = (placed(1, "s", 2), placed(2, "t", 3), placed(3, "l", 10))
    assert choose_victims({0: 12}, [first, second, large]) == (first, large)


def test_nobody_is_stopped_for_nothing() -> None:
    assert choose_victims({0: 0}, [placed(1, "a")]) == ()


def test_one_on_another_device_is_no_help() -> None:
    assert choose_victims({0: 1}, [placed(1, "a", devices=(1,))]) is None


def test_a_placement_frees_its_share_on_each_of_its_devices() -> None:
    spread = placed(1, "a", 10, devices=(0, 1))
    assert [freed_bytes(index, [spread]) for index in DEVICES] == [5, 5, 0]


@pytest.mark.parametrize(
    ("victim", "newcomer", "may"),
    [
        ({"residency_priority": 100}, {"residency_priority": 100}, True),
        ({"residency_priority": 99}, {"residency_priority": 100}, True),
        ({"residency_priority": 101}, {"residency_priority": 100}, False),
        ({"residency_priority": 1, "pinned": True}, {"residency_priority": 300}, False),
    ],
)
def test_priority_and_pins_decide_who_may_be_displaced(
    victim: dict[str, Any], newcomer: dict[str, Any], may: bool
) -> None:
    snapshot = fleet(profiles=[model("v", **victim), model("n", **newcomer)])
    one = Newcomer(snapshot.profile("n"))
    assert may_displace(one, placed(1, "v"), snapshot) is may


def test_a_model_missing_from_the_catalogue_has_the_default_priority() -> None:
    snapshot = fleet(profiles=[model("low", residency_priority=99), model("n")])
    assert may_displace(Newcomer(snapshot.profile("n")), placed(1, "stray"), snapshot)
    assert not may_displace(Newcomer(snapshot.profile("low")), placed(1, "stray"), snapshot)


@pytest.mark.parametrize(
    ("priority", "num_copies", "is_waited_for", "may"),
    [
        (100, 1, False, False),  # kept by a wish of the same rank
        (99, 1, False, True),
        (100, 2, False, True),  # one to spare
        (99, 1, True, False),  # somebody needs it now
    ],
)
def test_a_standing_wish_does_not_take_what_another_keeps(
    priority: int, num_copies: int, is_waited_for: bool, may: bool
) -> None:
    kept = [placed(n, "kept", on=n) for n in range(1, num_copies + 1)]
    snapshot = fleet(
        profiles=[model("kept", min_placements=1, residency_priority=priority), model("n")],
        placements=kept,
        waiting=[waits("kept")] if is_waited_for else [],
    )
    newcomer = Newcomer(snapshot.profile("n"), is_standing=True)
    assert may_displace(newcomer, kept[0], snapshot) is may
    assert may_displace(Newcomer(snapshot.profile("n")), kept[0], snapshot)


@pytest.mark.parametrize("phase", sorted(set(P) - {P.READY}))
def test_only_a_ready_placement_is_evictable(phase: PlacementPhase) -> None:
    assert not is_evictable_now(placed(1, "a", phase=phase), fleet())


@pytest.mark.parametrize("work", [{"in_flight": 1}, {"queued": 1}])
def test_a_busy_placement_is_not_evictable(work: dict[str, Any]) -> None:
    assert not is_evictable_now(placed(1, "a", **work), fleet())


def test_a_placement_is_left_alone_until_it_was_there_for_a_while() -> None:
    assert not is_evictable_now(placed(1, "a", since=9.9), fleet())
    assert is_evictable_now(placed(1, "a", since=10), fleet())
    assert not is_evictable_now(
        placed(1, "a", since=10), fleet(min_residency=timedelta(seconds=11))
    )


def in_order(strategy: EvictionStrategy) -> list[str]:
    """Least recently used: c, b, a. Lowest priority: b. Cheapest to bring back: a, then b."""
    snapshot = fleet(
        profiles=[
            model("a", residency_priority=200, reload_seconds=9.0, recent_requests=0),
            model("b", residency_priority=100, reload_seconds=2.0, recent_requests=3),
            model("c", residency_priority=200, reload_seconds=7.0, recent_requests=1),
        ],
        placements=[placed(1, "a", used=1), placed(2, "b", used=2), placed(3, "c", used=3)],
        eviction_strategy=strategy,
    )
    ordered = sorted(snapshot.placements, key=lambda one: eviction_order(one, snapshot))
    return [placement.model_id for placement in ordered]


def test_each_strategy_orders_in_its_own_way() -> None:
    assert in_order(EvictionStrategy.LRU) == ["c", "b", "a"]
    assert in_order(EvictionStrategy.PRIORITY) == ["b", "c", "a"]
    assert in_order(EvictionStrategy.COST) == ["a", "b", "c"]


def test_one_that_was_never_used_counts_from_when_it_was_ready() -> None:
    fresh = placed(1, "a", since=5, last_used_at=None)
    assert last_used_at(fresh) == ago(5)
    assert last_used_at(placed(1, "a", since=7, last_used_at=None, ready_at=None)) == ago(7)
