"""Scenarios through polls, passes and fake neurons behind real ports."""

from typing import Any

from django.db import connection
from django.test.utils import CaptureQueriesContext
from prometheus_client import REGISTRY

from fleet import controller, services, watch
from fleet.models import (
    Cooldown,
    Demand,
    EventKind,
    FleetEvent,
    Lease,
    ModelProfile,
    Neuron,
    Placement,
)
from fleet.neuron_client import NeuronCalls
from fleet.planner.phases import LIVE, NeuronPhase, PlacementPhase
from fleet.services.observe import record_report
from neuron_agent.protocol import ErrorCode
from tests.fakes.neuron import Refusal
from tests.fleet.conftest import Driver, history, live, neuron_row, placements
from tests.world import BEAST, DEVICE_MB, LARGE, LARGE_MB, PUNY, SMALL, SMALL_MB

_MB = 2**20


def want(fleet: Driver, model_id: str, source: str = "gateway-1") -> None:
    services.request_placement(model_id, source, 1, fleet.clock(), lifetime_seconds=3600)


def served(fleet: Driver, model_id: str) -> None:
    """The gateway has what it waited for."""
    services.withdraw_demand(model_id, "gateway-1")


def bring_up(fleet: Driver, model_id: str) -> Placement:
    want(fleet, model_id)
    fleet.until(lambda: placements(model_id, phase="ready"))
    served(fleet, model_id)
    return placements(model_id, phase="ready")[0]


def leave_only_one_device(fleet: Driver) -> None:
    fleet.world.beast.knobs.device_memory_mb = (DEVICE_MB,)
    services.set_enabled(neuron_row(PUNY).pk, False, fleet.clock())


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


def test_a_neuron_that_dies_is_unhealthy_then_lost_and_its_model_goes_elsewhere(
    fleet: Driver,
) -> None:
    assert bring_up(fleet, SMALL).neuron.name == BEAST
    fleet.world.beast.stop()
    fleet.until(lambda: neuron_row(BEAST).phase == NeuronPhase.UNHEALTHY)
    assert neuron_row(BEAST).num_missed_polls == 3
    fleet.until(lambda: live(SMALL) == [(BEAST, "lost")], 20)
    want(fleet, SMALL)
    fleet.until(lambda: (PUNY, "ready") in live(SMALL))
    served(fleet, SMALL)
    fleet.world.beast.start()
    fleet.until(lambda: (BEAST, "ready") in live(SMALL))


def test_a_lost_neuron_that_comes_back_empty_ends_its_placements(fleet: Driver) -> None:
    placement = bring_up(fleet, SMALL)
    fleet.world.beast.stop()
    fleet.until(lambda: live(SMALL) == [(BEAST, "lost")], 20)
    fleet.world.beast.restart()
    fleet.until(lambda: live(SMALL) == [])
    placement.refresh_from_db()
    assert placement.reason == "the neuron came back without it"


def test_a_restarted_neuron_has_lost_its_models_and_is_asked_again(fleet: Driver) -> None:
    ModelProfile.objects.filter(model_id=LARGE).update(min_placements=1)
    fleet.until(lambda: live(LARGE) == [(BEAST, "ready")])
    first = placements(LARGE)[0]
    fleet.world.beast.restart()
    fleet.until(lambda: placements(LARGE, phase="ready") not in ([], [first]))
    first.refresh_from_db()
    assert (first.phase, first.reason) == ("stopped", "the neuron was restarted")
    assert "beast was restarted" in history()


def vanish(fleet: Driver) -> None:
    """The load begins, and brings the neuron down."""
    fleet.world.beast.knobs.load_seconds = float("inf")
    fleet.until(lambda: live(SMALL) == [(BEAST, "loading")])
    fleet.world.beast.restart()
    fleet.poll()


def test_a_load_that_brings_its_neuron_down_is_tried_once_more_then_paused(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    want(fleet, SMALL)
    vanish(fleet)
    (first,) = placements(SMALL)
    assert (first.phase, first.error_code) == ("failed", "load_interrupted")
    assert Cooldown.objects.get().until == fleet.clock()
    vanish(fleet)
    assert (Cooldown.objects.get().until - fleet.clock()).total_seconds() == 10
    fleet.settle(3)
    assert len(placements(SMALL)) == 2
    fleet.world.beast.knobs.load_seconds = 0.0
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")], 20)
    assert not Cooldown.objects.exists()


def test_a_load_lost_before_it_was_ever_ready_is_a_failed_one(fleet: Driver) -> None:
    fleet.world.beast.knobs.load_seconds = float("inf")
    want(fleet, SMALL)
    fleet.until(lambda: live(SMALL) == [(BEAST, "loading")])
    served(fleet, SMALL)
    fleet.world.beast.stop()
    fleet.until(lambda: live(SMALL) == [(BEAST, "lost")], 20)
    fleet.world.beast.restart()
    fleet.until(lambda: live(SMALL) == [])
    assert placements(SMALL)[0].error_code == "load_interrupted"


def test_a_need_the_neuron_names_is_learned_and_planned_with_at_once(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    bring_up(fleet, SMALL)
    fleet.clock.advance(60)
    ModelProfile.objects.filter(model_id=LARGE).update(vram_mb=100)
    bring_up(fleet, LARGE)
    failed = placements(LARGE, phase="failed")
    assert [placement.error_code for placement in failed] == [ErrorCode.DOES_NOT_FIT]
    assert not Cooldown.objects.exists()
    assert live(SMALL) == []


def test_a_need_already_known_is_no_news_and_the_pair_cools_down(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    fleet.world.beast.knobs.refuse_load = Refusal(
        422, ErrorCode.DOES_NOT_FIT, "no room", needed_mb=SMALL_MB, free_mb=10
    )
    want(fleet, SMALL)
    fleet.settle(3)
    assert len(placements(SMALL, phase="failed")) == 1
    assert Cooldown.objects.get().num_failures == 1


def test_a_failed_load_is_tried_on_the_next_neuron(fleet: Driver) -> None:
    fleet.world.beast.knobs.fail_load = (ErrorCode.LOAD_FAILED, "the weights are broken")
    want(fleet, SMALL)
    fleet.until(lambda: live(SMALL) == [(PUNY, "ready")])
    failed = placements(SMALL, phase="failed")
    assert [(p.neuron.name, p.error) for p in failed] == [(BEAST, "the weights are broken")]


def test_a_pair_that_fails_again_pauses_longer_and_a_success_forgives(fleet: Driver) -> None:
    leave_only_one_device(fleet)
    fleet.world.beast.knobs.refuse_load = Refusal(422, ErrorCode.LOAD_FAILED)
    want(fleet, SMALL)
    fleet.until(lambda: len(placements(SMALL, phase="failed")) == 2)
    cooldown = Cooldown.objects.get()
    assert cooldown.num_failures == 2
    assert 18 < (cooldown.until - fleet.clock()).total_seconds() <= 20
    fleet.world.beast.knobs.refuse_load = None
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    assert not Cooldown.objects.exists()


def test_an_unreachable_neuron_fails_the_load_and_another_gets_it(fleet: Driver) -> None:
    fleet.poll()
    fleet.world.beast.stop()
    want(fleet, SMALL)
    controller.run_once(fleet.calls, fleet.clock)
    assert [p.error_code for p in placements(SMALL)] == ["neuron_unreachable"]
    fleet.until(lambda: live(SMALL) == [(PUNY, "ready")])


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


def test_a_pass_cut_off_before_it_told_the_neuron_is_made_good(fleet: Driver) -> None:
    fleet.poll()
    want(fleet, SMALL)
    controller.decide(fleet.clock())  # the worker is killed here
    assert live(SMALL) == [(BEAST, "pending")]
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    assert len(placements(SMALL)) == 1
    assert fleet.world.beast.num_loads[SMALL] == 1


def test_a_load_the_neuron_took_before_the_worker_died_is_seen(fleet: Driver) -> None:
    fleet.poll()
    want(fleet, SMALL)
    with NeuronCalls() as calls:
        controller.tell(calls, controller.decide(fleet.clock()))
        calls.finished(10)  # answered, and killed before the answer was written down
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    assert fleet.world.beast.num_loads[SMALL] == 1


def test_an_unload_nobody_told_is_told_later(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    services.request_unload(SMALL, None, fleet.clock())
    controller.decide(fleet.clock())  # the worker is killed here
    assert live(SMALL) == [(BEAST, "draining")]
    fleet.until(lambda: live(SMALL) == [])
    assert fleet.world.beast.num_unloads[SMALL] == 1


def test_an_unload_that_a_restart_undid_is_ordered_again(fleet: Driver) -> None:
    fleet.world.beast.knobs.unload_seconds = float("inf")
    placement = bring_up(fleet, SMALL)
    services.request_unload(SMALL, None, fleet.clock())
    fleet.until(lambda: live(SMALL) == [(BEAST, "unloading")])
    fleet.world.beast.restart()
    fleet.world.beast.place(SMALL)  # its start loads it again
    fleet.world.beast.knobs.unload_seconds = 0.0
    fleet.until(lambda: live(SMALL) == [])
    placement.refresh_from_db()
    assert placement.phase == PlacementPhase.STOPPED
    assert fleet.world.beast.num_unloads[SMALL] == 1


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


def test_a_poisoned_device_makes_its_models_recover(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    fleet.world.beast.knobs.poisoned_devices = frozenset({0, 1})
    fleet.until(lambda: live(SMALL) == [(BEAST, "recovering")])
    assert set(neuron_row(BEAST).devices.values_list("trouble", flat=True)) == {"poisoned"}
    fleet.world.beast.knobs.poisoned_devices = frozenset()
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])


def test_every_live_phase_is_legal_after_a_storm_of_orders(fleet: Driver) -> None:
    for round_number in range(3):
        want(fleet, SMALL)
        services.request_load(LARGE, None, fleet.clock())
        fleet.settle(3)
        services.request_unload(SMALL if round_number % 2 else LARGE, None, fleet.clock())
        fleet.settle(3)
    served(fleet, SMALL)
    assert {p.phase for p in Placement.objects.filter(phase__in=sorted(LIVE))} <= {"ready"}


def test_a_report_that_cannot_be_stored_is_a_miss_and_stops_no_other(fleet: Driver) -> None:
    fleet.world.beast.knobs.device_memory_mb = (2**62,)
    for _ in range(3):
        fleet.poll()
    assert neuron_row(BEAST).phase == NeuronPhase.UNHEALTHY
    assert "cannot be stored" in neuron_row(BEAST).last_error
    assert neuron_row(PUNY).phase == NeuronPhase.HEALTHY


def test_an_answer_that_cannot_be_stored_keeps_no_other_from_being_heard(
    fleet: Driver, monkeypatch, caplog
) -> None:
    fleet.poll()
    want(fleet, LARGE)
    want(fleet, SMALL)
    record_answer = controller.record_answer

    def fail_for_large(order, answer, now):
        if order.request.model_id == LARGE:
            raise ValueError("not to be stored")
        return record_answer(order, answer, now)

    monkeypatch.setattr(controller, "record_answer", fail_for_large)
    fleet.world.beast.knobs.load_seconds = float("inf")
    controller.tell(fleet.calls, controller.decide(fleet.clock()))
    while fleet.calls.num_pending:
        watch.record_answers(fleet.calls, fleet.clock, 10)
    assert [placement.phase for placement in placements(SMALL)] == ["loading"]
    assert [placement.phase for placement in placements(LARGE)] == ["pending"]
    assert "not to be stored" in caplog.text


def test_texts_are_cut_to_their_columns_and_lose_their_nuls(fleet: Driver) -> None:
    code, message = ErrorCode.LOAD_FAILED, "x\x00" * 2000
    fleet.world.beast.knobs.fail_load = (code, message)
    want(fleet, SMALL)
    fleet.until(lambda: placements(SMALL, phase="failed"))
    failed = placements(SMALL, phase="failed")[0]
    assert failed.error == ("x\ufffd" * 500)
    assert "\x00" not in "".join(history())


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


def test_what_a_neuron_said_before_it_fell_silent_is_no_sign_of_life(fleet: Driver) -> None:
    fleet.poll()
    watch.start_polls(fleet.calls, fleet.clock)
    late = fleet.calls.finished(10)
    fleet.clock.advance(1)
    services.report_unreachable(neuron_row(BEAST).pk, "refused", fleet.clock())
    for address, report in late:
        record_report(address.id, report, fleet.clock())
    assert neuron_row(BEAST).phase == NeuronPhase.UNHEALTHY
    fleet.poll()
    assert neuron_row(BEAST).phase == NeuronPhase.HEALTHY


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
