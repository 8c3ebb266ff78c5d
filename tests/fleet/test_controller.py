"""Scenarios through polls, passes and fake neurons behind real ports."""

from typing import Any

from django.db import connection
from django.test.utils import CaptureQueriesContext
from prometheus_client import REGISTRY

from fleet import controller, services, watch
from fleet.models import (
    Demand,
    EventKind,
    FleetEvent,
    Lease,
    ModelProfile,
    Neuron,
    Placement,
)
from fleet.planner.phases import LIVE, PlacementPhase
from fleet.services.observe import record_report
from neuron_agent.protocol import ErrorCode
from tests.fakes.neuron import Refusal
from tests.fleet.conftest import (
    Driver,
    bring_up,
    history,
    leave_only_one_device,
    live,
    neuron_row,
    placements,
    served,
    want,
)
from tests.world import BEAST, LARGE, LARGE_MB, PUNY, SMALL, SMALL_MB

_MB = 2**20


def test_a_model_that_is_waited_for_is_loaded_and_seen_ready(fleet: Driver) -> None:
    want(fleet, SMALL)
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    assert fleet.world.beast.num_loads[SMALL] == 1
    assert fleet.world.puny.num_loads[SMALL] == 0
    assert any("load org/small on beast" in line for line in history())


def test_many_who_wait_get_one_load(fleet: Driver) -> None:
    for gateway in ("gateway-1", "gateway-2", "gateway-3"):
        want(fleet, SMALL, gateway)
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    fleet.settle()
    assert fleet.world.beast.num_loads[SMALL] + fleet.world.puny.num_loads[SMALL] == 1


def test_what_a_ready_model_told_is_kept_for_its_next_load(fleet: Driver) -> None:
    placement = bring_up(fleet, LARGE)
    profile = ModelProfile.objects.get(model_id=LARGE)
    assert placement.memory_bytes == profile.learned_bytes == LARGE_MB * _MB
    assert placement.memory_measured
    assert profile.learned_for == profile.options_key
    assert profile.limit_context == 32_768
    assert profile.load_seconds is not None
    assert LARGE in neuron_row(BEAST).models_on_disk


def test_what_is_learned_of_a_model_is_its_need_not_what_it_took(fleet: Driver) -> None:
    """Where memory is idle it takes more: the next neuron may have less."""
    fleet.world.beast.knobs.model_needed_mb = {SMALL: 2_000}
    placement = bring_up(fleet, SMALL)
    assert placement.memory_bytes == SMALL_MB * _MB
    assert ModelProfile.objects.get(model_id=SMALL).learned_bytes == 2_000 * _MB


def test_two_models_with_memory_for_one_take_turns(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    ModelProfile.objects.filter(model_id=SMALL).update(vram_mb=LARGE_MB)
    fleet.world.beast.knobs.model_memory_mb[SMALL] = LARGE_MB
    for model_id, other in ((LARGE, SMALL), (SMALL, LARGE), (LARGE, SMALL), (SMALL, LARGE)):
        bring_up(fleet, model_id)
        assert live(other) == []
    assert fleet.world.beast.num_loads == {LARGE: 2, SMALL: 2}


def test_an_eviction_says_who_displaced_whom_and_why(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    ModelProfile.objects.filter(model_id=SMALL).update(vram_mb=LARGE_MB)
    victim = bring_up(fleet, LARGE)
    bring_up(fleet, SMALL)
    event = FleetEvent.objects.get(placement=victim.pk, data__to="draining")
    assert event.model == LARGE
    assert event.data["for_model"] == SMALL
    assert event.data["needed_bytes"] == LARGE_MB * _MB
    assert event.data["freed_bytes"] == LARGE_MB * _MB
    assert f"displaced by {SMALL}" in event.message


def test_a_victim_that_got_a_request_meanwhile_goes_on_serving(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    ModelProfile.objects.filter(model_id=SMALL).update(vram_mb=LARGE_MB)
    victim = bring_up(fleet, LARGE)
    fleet.clock.advance(60)
    fleet.poll()
    want(fleet, SMALL)
    given = controller.decide(fleet.clock())
    assert [order.placement_id for order in given] == [victim.pk]
    refusal = controller.orders.unload_refused_busy
    assert refusal(given[0], "1 request is in flight", fleet.clock())
    victim.refresh_from_db()
    assert victim.phase == PlacementPhase.READY
    assert any("busy, not unloaded" in line for line in history())


def test_a_neuron_that_says_busy_is_believed(fleet: Driver, monkeypatch) -> None:
    leave_only_one_device(fleet)
    ModelProfile.objects.filter(model_id=SMALL).update(vram_mb=LARGE_MB)
    victim = bring_up(fleet, LARGE)
    fleet.clock.advance(60)
    fleet.poll()
    want(fleet, SMALL)
    model = fleet.world.beast._models.find(LARGE)
    request = object()
    model.running.add(request)  # arrives after the poll
    controller.run_once(fleet.calls, fleet.clock)
    victim.refresh_from_db()
    assert victim.phase == PlacementPhase.READY
    assert fleet.world.beast.num_unloads[LARGE] == 0
    model.running.discard(request)
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    assert live(LARGE) == []


def test_of_two_passes_at_once_one_makes_it(fleet: Driver) -> None:
    fleet.poll()
    want(fleet, SMALL)
    with controller.holding(controller.PASS_LEASE, fleet.clock, 10) as is_held:
        assert is_held
        assert controller.run_once(fleet.calls, fleet.clock) is None
    assert len(controller.run_once(fleet.calls, fleet.clock) or ()) == 1


def test_two_passes_from_the_same_snapshot_load_once(fleet: Driver) -> None:
    fleet.poll()
    want(fleet, SMALL)
    (load,) = controller.preview(fleet.clock())
    assert controller.begin(load, fleet.clock()) is not None
    assert controller.begin(load, fleet.clock()) is None
    assert live(SMALL) == [(BEAST, "pending")]


def test_an_operators_unload_empties_the_neuron(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    assert services.request_unload(SMALL, BEAST, fleet.clock(), "owner") == 1
    fleet.until(lambda: live(SMALL) == [])
    assert fleet.world.beast.phase_of(SMALL) is None
    assert FleetEvent.objects.get(kind=EventKind.OPERATOR, actor="owner").model == SMALL


def test_an_operators_load_goes_where_it_was_asked_and_is_then_done(fleet: Driver) -> None:
    services.request_load(SMALL, PUNY, fleet.clock(), "owner")
    fleet.until(lambda: live(SMALL) == [(PUNY, "ready")])
    fleet.until(lambda: not Demand.objects.exists())


def test_an_operators_load_that_failed_is_not_tried_for_ever(fleet: Driver) -> None:
    fleet.world.puny.knobs.refuse_load = Refusal(422, ErrorCode.LOAD_FAILED)
    services.request_load(SMALL, PUNY, fleet.clock(), "owner")
    fleet.until(lambda: placements(SMALL, phase="failed"))
    fleet.until(lambda: not Demand.objects.exists())
    fleet.settle(15)
    assert len(placements(SMALL)) == 1


def test_a_drained_neuron_is_emptied_and_takes_nothing(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    services.drain(neuron_row(BEAST).pk, fleet.clock(), "owner")
    want(fleet, SMALL)
    fleet.until(lambda: live(SMALL) == [(PUNY, "ready")])
    services.uncordon(neuron_row(BEAST).pk, fleet.clock(), "owner")
    assert bring_up(fleet, LARGE).neuron.name == BEAST


def test_a_disabled_neuron_is_emptied_then_left_alone(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    services.set_enabled(neuron_row(BEAST).pk, False, fleet.clock())
    fleet.until(lambda: live(SMALL) == [])
    num_polls = len(fleet.world.beast.requests_to("/health"))
    fleet.settle()
    assert len(fleet.world.beast.requests_to("/health")) == num_polls


def test_a_model_too_large_for_the_fleet_is_refused_with_reasons(fleet: Driver) -> None:
    ModelProfile.objects.filter(model_id=LARGE).update(vram_mb=100_000)
    fleet.poll()
    want(fleet, LARGE)
    fleet.settle(3)
    verdict = Demand.objects.get().verdict
    assert verdict is not None
    assert verdict["kind"] == "refuse"
    assert {(r["neuron"], r["code"]) for r in verdict["refusals"]} == {
        (BEAST, "device_too_small"),
        (PUNY, "device_too_small"),
    }
    assert len([line for line in history() if "can be placed nowhere" in line]) == 1


def test_a_load_that_stands_still_fails(fleet: Driver, settings) -> None:
    settings.CORTEX_LOAD_STALL_SECONDS = 30
    leave_only_one_device(fleet)
    fleet.world.beast.knobs.load_seconds = float("inf")
    want(fleet, SMALL)
    fleet.until(lambda: placements(SMALL, phase="failed"))
    assert placements(SMALL)[0].error_code == "load_stalled"
    fleet.until(lambda: fleet.world.beast.phase_of(SMALL) is None)


def test_a_model_found_on_a_neuron_is_adopted(fleet: Driver) -> None:
    fleet.world.puny.place("somebody/elses")
    fleet.poll()
    assert live("somebody/elses") == [(PUNY, "ready")]
    assert ModelProfile.objects.get(model_id="somebody/elses").discovered


def test_a_fleet_at_rest_writes_only_when_it_was_seen(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    fleet.settle(7)
    seen_at = neuron_row(BEAST).last_seen_at

    def rows() -> list[object]:
        tables = (FleetEvent, Placement, ModelProfile, Neuron, Lease)
        return [
            {
                name: value
                for name, value in row.items()
                if name not in ("last_seen_at", "expires_at")
            }
            for table in tables
            for row in table.objects.order_by("pk").values()
        ]

    before = rows()
    fleet.settle(6)
    assert rows() == before
    assert neuron_row(BEAST).last_seen_at > seen_at


def test_a_quiet_poll_leaves_the_neurons_row_alone(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    fleet.step()
    with CaptureQueriesContext(connection) as captured:
        fleet.poll()
    writes = [q["sql"] for q in captured if q["sql"].startswith(("UPDATE", "INSERT", "DELETE"))]
    assert all(sql.startswith('UPDATE "fleet_device"') for sql in writes), writes


def test_every_live_phase_is_legal_after_a_storm_of_orders(fleet: Driver) -> None:
    for round_number in range(3):
        want(fleet, SMALL)
        services.request_load(LARGE, None, fleet.clock())
        fleet.settle(3)
        services.request_unload(SMALL if round_number % 2 else LARGE, None, fleet.clock())
        fleet.settle(3)
    served(fleet, SMALL)
    assert {p.phase for p in Placement.objects.filter(phase__in=sorted(LIVE))} <= {"ready"}


def test_an_eviction_decided_before_a_request_was_seen_is_not_begun(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    ModelProfile.objects.filter(model_id=SMALL).update(vram_mb=LARGE_MB)
    victim = bring_up(fleet, LARGE)
    fleet.clock.advance(60)
    fleet.poll()
    want(fleet, SMALL)
    planned = controller.preview(fleet.clock())
    Placement.objects.filter(pk=victim.pk).update(in_flight=1)
    assert controller.carry_out(planned, fleet.clock()) == ()
    assert live(LARGE) == [(BEAST, "ready")]


def test_a_poll_that_overtook_nothing_brings_nothing_back(fleet: Driver) -> None:
    """Asked before the model was unloaded, answered after: the model is not found again."""
    bring_up(fleet, SMALL)
    watch.start_polls(fleet.calls, fleet.clock)
    late = fleet.calls.finished(10)
    fleet.clock.advance(1)
    services.request_unload(SMALL, None, fleet.clock())
    fleet.until(lambda: live(SMALL) == [])
    for address, report in late:
        record_report(address.id, report, fleet.clock())
    assert live(SMALL) == []


def test_loads_and_unloads_are_counted_by_why(
    fleet: Driver, django_capture_on_commit_callbacks: Any
) -> None:
    def count(name: str, labels: dict[str, str]) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    def counts() -> tuple[float, float]:
        return (
            count("cortex_evictions_total", {"reason": "operator"}),
            count("cortex_load_seconds_count", {"model": SMALL}),
        )

    num_unloads, num_loads = counts()
    with django_capture_on_commit_callbacks(execute=True):
        bring_up(fleet, SMALL)
        fleet.settle()
        services.request_unload(SMALL, None, fleet.clock())
        fleet.until(lambda: live(SMALL) == [])
    assert counts() == (num_unloads + 1, num_loads + 1)
