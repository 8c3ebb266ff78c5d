"""What happens to loads and placements when neurons, workers and reports go wrong."""

from fleet import controller, services, watch
from fleet.models import (
    Cooldown,
    ModelProfile,
)
from fleet.neuron_client import NeuronCalls
from fleet.planner.phases import NeuronPhase, PlacementPhase
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
    vanish,
    want,
)
from tests.world import BEAST, LARGE, PUNY, SMALL, SMALL_MB

_MB = 2**20


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


def test_a_poisoned_device_makes_its_models_recover(fleet: Driver) -> None:
    bring_up(fleet, SMALL)
    fleet.world.beast.knobs.poisoned_devices = frozenset({0, 1})
    fleet.until(lambda: live(SMALL) == [(BEAST, "recovering")])
    assert set(neuron_row(BEAST).devices.values_list("trouble", flat=True)) == {"poisoned"}
    fleet.world.beast.knobs.poisoned_devices = frozenset()
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])


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
