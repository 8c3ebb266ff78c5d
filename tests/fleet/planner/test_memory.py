from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given

from fleet.planner.memory import DeviceMemory, MemorySource, device_memory, need_of
from fleet.planner.phases import OCCUPYING, PlacementPhase
from fleet.planner.snapshot import DeviceView, FleetSnapshot, PlacementView
from tests.fleet.planner.fleets import (
    LAW,
    P,
    ago,
    consistent_snapshots,
    device,
    fleet,
    model,
    neuron,
    placed,
    share_sum,
    snapshots,
)


def count(one: DeviceView, *placements: PlacementView, **policy: Any) -> DeviceMemory:
    snapshot = fleet([neuron(1, one)], placements=placements, **policy)
    return device_memory(one, placements, snapshot)


@pytest.mark.parametrize(
    ("figures", "total_bytes", "source"),
    [
        ({"learned_bytes": 7, "declared_bytes": 8, "estimated_bytes": 9}, 7, "learned"),
        ({"declared_bytes": 8, "estimated_bytes": 9}, 8, "declared"),
        ({"declared_bytes": None, "estimated_bytes": 9}, 9, "estimated"),
        ({"declared_bytes": None}, 0, "unknown"),
    ],
)
def test_the_best_source_says_what_a_model_needs(
    figures: dict[str, int | None], total_bytes: int, source: str
) -> None:
    need = need_of(model("a", **figures))
    assert (need.total_bytes, need.source) == (total_bytes, MemorySource(source))


def test_a_share_is_rounded_up() -> None:
    assert need_of(model("a", 10, min_devices=3)).bytes_per_device == 4


def test_a_ready_placement_is_in_the_report_already() -> None:
    assert count(device(free=14), placed(1, "a", 10)) == DeviceMemory(14, 0)


def test_a_pending_placement_has_its_memory_reserved() -> None:
    assert count(device(free=24), placed(1, "a", 10, phase=P.PENDING)) == DeviceMemory(14, 0)


@pytest.mark.parametrize("phase", [P.LOADING, P.WARMING, P.RECOVERING])
def test_what_a_load_may_hold_already_is_not_spent_but_expected(phase: PlacementPhase) -> None:
    assert count(device(free=18), placed(1, "a", 10, phase=phase)) == DeviceMemory(8, 6)


def test_memory_of_others_beyond_a_load_is_not_expected_back() -> None:
    assert count(device(free=5), placed(1, "a", 10, phase=P.LOADING)) == DeviceMemory(-5, 10)


def test_a_report_older_than_ready_may_not_show_all_of_it() -> None:
    early = device(free=20, observed_at=ago(5))
    assert count(early, placed(1, "a", 10, since=3)) == DeviceMemory(10, 4)


def test_memory_of_what_is_leaving_is_on_its_way() -> None:
    for phase in (P.DRAINING, P.UNLOADING):
        leaving = placed(1, "a", 10, phase=phase, ready_at=ago(60))
        assert count(device(free=14), leaving) == DeviceMemory(14, 10)


def test_a_busy_draining_placement_is_not_about_to_leave() -> None:
    busy = placed(1, "a", 10, phase=P.DRAINING, ready_at=ago(60), in_flight=1)
    assert count(device(free=14), busy) == DeviceMemory(14, 0)


def test_what_an_unload_gave_back_is_not_expected_again() -> None:
    leaving = placed(1, "a", 10, phase=P.UNLOADING, ready_at=ago(60), free_before_bytes=14)
    assert count(device(free=18), leaving) == DeviceMemory(18, 6)


def test_while_an_unload_goes_on_all_of_it_is_expected() -> None:
    leaving = placed(1, "a", 10, phase=P.UNLOADING, ready_at=ago(60), free_before_bytes=14)
    assert count(device(free=22), leaving) == DeviceMemory(22, 2)


def test_a_load_being_stopped_goes_on_taking_memory() -> None:
    stopping = placed(1, "a", 10, phase=P.UNLOADING, ready_at=None)
    assert count(device(free=20), stopping) == DeviceMemory(10, 14)


def stopped(seconds_ago: float, free_before: int | None) -> PlacementView:
    return placed(1, "a", 10, phase=P.STOPPED, since=seconds_ago, free_before_bytes=free_before)


@pytest.mark.parametrize(
    ("seconds_ago", "free", "coming"),
    [
        (2, 14, 10),  # nothing is back yet
        (2, 21, 3),  # less than three quarters
        (2, 22, 0),  # enough: the rest may be fragments, or somebody else's
        (5, 14, 0),  # we stop waiting
    ],
)
def test_an_unload_settles_by_ratio_or_by_time(seconds_ago: float, free: int, coming: int) -> None:
    assert count(device(free=free), stopped(seconds_ago, 14)) == DeviceMemory(free, coming)


def test_unloads_that_overlap_settle_together() -> None:
    both = (stopped(1, 0), placed(2, "b", 10, phase=P.STOPPED, since=1, free_before_bytes=0))
    assert count(device(free=10), *both) == DeviceMemory(10, 10)


def test_a_second_unload_begun_meanwhile_is_not_counted_twice() -> None:
    second = placed(2, "b", 10, phase=P.STOPPED, since=1, free_before_bytes=6)
    assert count(device(free=10), stopped(1, 0), second) == DeviceMemory(10, 10)


def test_a_report_older_than_an_end_says_nothing_about_it() -> None:
    old = device(free=14, observed_at=ago(20))
    assert count(old, stopped(10, None)) == DeviceMemory(14, 10)


def test_without_a_figure_from_before_the_next_report_is_believed() -> None:
    assert count(device(free=14), stopped(1, None)) == DeviceMemory(14, 0)


def test_memory_on_other_devices_does_not_matter() -> None:
    elsewhere = placed(1, "a", 10, devices=(1,), phase=P.PENDING)
    assert count(device(free=24), elsewhere) == DeviceMemory(24, 0)


def test_the_settling_time_is_the_operators() -> None:
    patient = count(device(free=14), stopped(8, 14), settle=timedelta(seconds=10))
    assert patient == DeviceMemory(14, 10)


@LAW
@given(snapshots())
def test_never_more_than_reported_is_free(snapshot: FleetSnapshot) -> None:
    for one in snapshot.neurons:
        for each in one.devices:
            memory = device_memory(each, tuple(snapshot.placements_on(one.id)), snapshot)
            assert memory.free_bytes <= each.free_bytes
            assert memory.coming_bytes >= 0


@LAW
@given(consistent_snapshots())
def test_what_is_free_and_what_is_there_never_exceed_the_device(snapshot: FleetSnapshot) -> None:
    for one in snapshot.neurons:
        for each in one.devices:
            there = tuple(snapshot.placements_on(one.id))
            occupying = [row for row in there if row.phase in OCCUPYING]
            free_bytes = device_memory(each, there, snapshot).free_bytes
            assert free_bytes + share_sum(each.index, occupying) <= each.total_bytes
