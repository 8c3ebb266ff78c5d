"""Waiting for a model: one wish however many wait, word to each, the place given back."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.selectors import LoadFailureView, ServingView, Verdict
from inference.cold_load import eta_of, why_hopeless
from inference.dispatch.admission import Limits
from inference.wire.errors import ModelLoadFailed, NeuronUnreachable, NoFeasibleNeuron
from tests.fakes.neuron import FakeNeuron
from tests.fakes.neuron import Refusal as NeuronRefusal
from tests.inference.world import (
    MODEL,
    RecordedPort,
    Served,
    a_model,
    a_neuron,
    a_placement,
    a_view,
    eventually,
    served,
)


@pytest.fixture
async def service(neuron: FakeNeuron) -> AsyncIterator[Served]:
    async with served(RecordedPort(a_view([a_neuron(neuron.url)]))) as service:
        yield service


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first word comes at once, the next ones quickly."""
    monkeypatch.setattr("inference.event_stream.FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr("inference.event_stream.PERIOD_SECONDS", 0.02)


def ready_view(neuron: FakeNeuron) -> ServingView:
    return a_view([a_neuron(neuron.url)], [a_placement()])


def loading_view(neuron: FakeNeuron, **changes: Any) -> ServingView:
    placement = a_placement(phase=PlacementPhase.LOADING, stage="reading", percent=40.0)
    return a_view(
        [a_neuron(neuron.url)], [placement], models=[replace(a_model(), load_seconds=30.0)]
    )


def words_of(body: bytes) -> list[dict[str, Any]]:
    prefix = b": cortex-progress "
    frames = [frame for frame in body.split(b"\n\n") if frame.startswith(prefix)]
    return [json.loads(frame.removeprefix(prefix)) for frame in frames]


async def test_twenty_clients_at_once_are_one_wish_and_twenty_answers(
    service: Served, neuron: FakeNeuron
) -> None:
    async def ask(stream: bool) -> tuple[int, str, bytes]:
        async with service.chat(stream=stream) as answer:
            return answer.status, answer.headers["x-cortex-cold-start"], await answer.read()

    asking = [asyncio.ensure_future(ask(n % 2 == 0)) for n in range(20)]
    await eventually(lambda: service.gateway.cold_loads.num_waiting == 20)
    await eventually(lambda: service.port.demand)
    assert service.port.num_requests_for(MODEL) == 1
    service.show(ready_view(neuron))
    answers = await asyncio.gather(*asking)
    assert {(status, cold) for status, cold, _ in answers} == {(200, "true")}
    assert all(b"word7" in body for _, _, body in answers)
    await eventually(lambda: not service.port.demand)
    await eventually(lambda: len(service.port.records) == 20)
    assert all(record.cold_start for record in service.port.records)
    assert all(record.load_wait_seconds is not None for record in service.port.records)


@pytest.mark.usefixtures("impatient")
async def test_a_stream_is_told_how_the_load_goes(service: Served, neuron: FakeNeuron) -> None:
    async with service.chat(stream=True) as answer:
        assert answer.status == 200
        assert answer.headers["x-cortex-cold-start"] == "true"
        first = words_of(await answer.content.readuntil(b"\n\n"))[0]
        assert first == {"model": MODEL, "stage": "queued", "percent": 0.0, "position": 1}
        service.show(loading_view(neuron))
        while (word := words_of(await answer.content.readuntil(b"\n\n"))[0])["stage"] == "queued":
            pass
        assert (word["stage"], word["percent"], word["position"]) == ("reading", 40.0, 1)
        assert 20 < word["eta_seconds"] <= 30
        service.show(ready_view(neuron))
        body = await answer.read()
    assert body.endswith(b"data: [DONE]\n\n")
    assert b": cortex " not in body
    record = await service.record()
    assert (record.status, record.cold_start, record.neuron) == (200, True, "beast")
    assert record.load_wait_seconds is not None
    assert record.ttft_seconds is not None
    assert record.ttft_seconds >= record.load_wait_seconds


@pytest.mark.usefixtures("impatient")
async def test_who_came_later_stands_behind(service: Served, neuron: FakeNeuron) -> None:
    first = await service.chat(stream=True)
    await first.content.readuntil(b"\n\n")
    async with service.chat(stream=True) as second:
        assert words_of(await second.content.readuntil(b"\n\n"))[0]["position"] == 2
        first.close()
        while words_of(await second.content.readuntil(b"\n\n"))[0]["position"] != 1:
            pass


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.usefixtures("impatient")
async def test_the_last_waiter_that_leaves_withdraws_the_wish(
    service: Served, stream: bool
) -> None:
    asking = [asyncio.ensure_future(service.chat(stream=stream).__aenter__()) for _ in range(2)]
    await eventually(lambda: service.gateway.cold_loads.num_waiting == 2)
    await eventually(lambda: MODEL in service.port.demand)
    await _leave(asking[0])
    await eventually(lambda: service.gateway.cold_loads.num_waiting == 1)
    assert ("withdraw", MODEL) not in service.port.calls
    await _leave(asking[1])
    await eventually(lambda: ("withdraw", MODEL) in service.port.calls)
    assert not service.port.demand
    await service.at_rest()
    await eventually(lambda: len(service.port.records) == 2)
    assert {record.status for record in service.port.records} == {499}


async def _leave(asking: "asyncio.Future[Any]") -> None:
    if asking.done():
        asking.result().close()
    asking.cancel()


async def test_the_wish_is_renewed_while_someone_waits(
    neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.cold_load.RENEW_SECONDS", 0.02)
    async with served(RecordedPort(a_view([a_neuron(neuron.url)]))) as service:
        asking = asyncio.ensure_future(service.chat().__aenter__())
        await eventually(lambda: service.port.demand)
        service.port.demand.clear()  # as if it had expired
        await eventually(lambda: service.port.demand == {MODEL: 1})
        asking.cancel()


async def test_a_silent_wait_ends_with_503_and_what_is_known(neuron: FakeNeuron) -> None:
    async with served(RecordedPort(loading_view(neuron)), load_wait_seconds=0.05) as service:
        async with service.chat() as answer:
            assert answer.status == 503
            assert 5 <= int(answer.headers["retry-after"]) <= 300
            error = (await answer.json())["error"]
        assert error["code"] == "model_loading"
        assert error["loading"]["stage"] == "reading"
        assert (await service.record()).status == 503


async def test_a_placement_that_has_just_gone_is_waited_for(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.fail_before_first_byte = NeuronRefusal(503, "model_not_loaded", retry_after=1)
    service.show(ready_view(neuron))
    asking = asyncio.ensure_future(service.chat().__aenter__())
    await eventually(lambda: MODEL in service.port.demand)
    neuron.knobs.fail_before_first_byte = None
    service.show(a_view([a_neuron(neuron.url)], [a_placement(id=12)]))
    answer = await asking
    assert (answer.status, answer.headers["x-cortex-placement"]) == (200, "12")
    assert answer.headers["x-cortex-cold-start"] == "true"
    answer.release()


async def test_all_the_waits_of_a_request_have_one_end(
    neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.dispatch.failover.GONE_SECONDS", 0.02)
    neuron.knobs.fail_before_first_byte = NeuronRefusal(503, "model_not_loaded", retry_after=1)
    port = RecordedPort(ready_view(neuron))
    async with served(port, load_wait_seconds=0.3) as service, service.chat() as answer:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (await answer.json())["error"]["code"] == "model_loading"
        assert len(neuron.requests_to("/v1/chat/completions")) > 2


async def test_who_waits_in_silence_looks_again_though_nothing_changed(
    neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.dispatch.failover.GONE_SECONDS", 0.3)
    monkeypatch.setattr("inference.cold_load.LOOK_SECONDS", 0.02)
    neuron.knobs.fail_before_first_byte = NeuronRefusal(503, "model_not_loaded", retry_after=1)
    port = RecordedPort(ready_view(neuron))
    async with served(port, load_wait_seconds=3600, urgent_poll_seconds=3600) as service:
        asking = asyncio.ensure_future(service.chat().__aenter__())
        await eventually(lambda: service.gateway.cold_loads.num_waiting == 1)
        neuron.knobs.fail_before_first_byte = None
        async with asyncio.timeout(10):
            answer = await asking
        assert answer.status == 200
        answer.release()


async def test_an_unknown_model_is_404_and_wished_for_by_nobody(service: Served) -> None:
    async with service.chat(model="no/such") as answer:
        assert answer.status == 404
        assert (await answer.json())["error"]["code"] == "model_not_found"
    record = await service.record()
    assert (record.model, record.requested_model, record.status) == ("", "no/such", 404)
    assert service.port.calls == []


async def test_a_refused_model_is_503_with_the_reasons(service: Served, neuron: FakeNeuron) -> None:
    refusals = (Refusal("beast", RefusalCode.DEVICE_TOO_SMALL, "needs 9 MB, has 5 MB"),)
    verdict = Verdict("refuse", refusals)
    service.show(a_view([a_neuron(neuron.url)], verdicts={MODEL: verdict}))
    async with service.chat(stream=True) as answer:
        assert answer.status == 503
        assert "retry-after" in answer.headers
        error = (await answer.json())["error"]
    assert error["code"] == "no_feasible_neuron"
    assert error["reasons"] == [
        {"neuron": "beast", "code": "device_too_small", "detail": "needs 9 MB, has 5 MB"}
    ]


@pytest.mark.usefixtures("impatient")
async def test_an_error_after_the_200_is_the_streams_last_frame(
    service: Served, neuron: FakeNeuron
) -> None:
    async with service.chat(stream=True) as answer:
        assert answer.status == 200
        await answer.content.readuntil(b"\n\n")
        service.show(a_view([a_neuron(neuron.url)], verdicts={MODEL: Verdict("refuse", ())}))
        body = await answer.read()
    last = body.removesuffix(b"\n\n").split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "no_feasible_neuron"
    assert b"[DONE]" not in body
    assert (await service.record()).status == 503


async def test_a_model_of_a_neuron_that_is_away_is_503_at_once(
    service: Served, neuron: FakeNeuron
) -> None:
    away = a_neuron(neuron.url, phase=NeuronPhase.UNHEALTHY, dispatchable=False)
    service.show(a_view([away], [a_placement()]))
    async with service.chat(stream=True) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert (await answer.json())["error"]["code"] == "neuron_unreachable"
        assert answer.headers["x-cortex-cold-start"] == "false"
    record = await service.record()
    assert (record.cold_start, record.load_wait_seconds) == (False, None)


async def test_a_neuron_that_was_never_asked_is_waited_for(
    service: Served, neuron: FakeNeuron
) -> None:
    new = a_neuron(neuron.url, phase=NeuronPhase.UNKNOWN, dispatchable=False)
    service.show(a_view([new]))
    asking = asyncio.ensure_future(service.chat().__aenter__())
    await eventually(lambda: MODEL in service.port.demand)
    service.show(ready_view(neuron))
    answer = await asking
    assert answer.status == 200
    answer.release()


async def test_a_full_waiting_room_says_so(neuron: FakeNeuron) -> None:
    port = RecordedPort(a_view([a_neuron(neuron.url)]))
    async with served(port, limits=Limits(max_waiting=1)) as service:
        asking = asyncio.ensure_future(service.chat().__aenter__())
        await eventually(lambda: service.gateway.cold_loads.num_waiting == 1)
        async with service.chat() as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "saturated"
        asking.cancel()


async def test_a_resident_that_others_have_long_waited_to_displace_takes_nothing_new(
    neuron: FakeNeuron,
) -> None:
    def view(waiting_seconds: float) -> ServingView:
        since = datetime.now(UTC) - timedelta(seconds=waiting_seconds)
        refusals = (Refusal("beast", RefusalCode.BUSY_VICTIMS),)
        verdicts = {"org/other": Verdict("hold", refusals, since)}
        models = [a_model(), a_model("org/other")]
        return a_view([a_neuron(neuron.url)], [a_placement()], models, verdicts=verdicts)

    async with served(RecordedPort(view(5)), max_wait_seconds=60) as service:
        async with service.chat() as answer:
            assert answer.status == 200
        service.show(view(61))
        asking = asyncio.ensure_future(service.chat().__aenter__())
        await eventually(lambda: service.gateway.cold_loads.num_waiting == 1)
        service.show(ready_view(neuron))
        answer = await asking
        assert answer.status == 200
        answer.release()


async def test_stopping_withdraws_what_was_wished_for() -> None:
    port = RecordedPort(a_view([a_neuron("http://127.0.0.1:9")]))
    async with served(port) as service:
        asking = asyncio.ensure_future(service.chat().__aenter__())
        await eventually(lambda: port.demand)
        await service.gateway.cold_loads.stop()
        assert not port.demand
        asking.cancel()


async def test_stopping_does_not_take_one_thing_after_the_other() -> None:
    class Slow(RecordedPort):
        """Each of the two is done only when the other has begun."""

        def __init__(self) -> None:
            super().__init__(a_view([a_neuron("http://127.0.0.1:9")]))
            self.is_withdrawing, self.is_storing = asyncio.Event(), asyncio.Event()

        async def withdraw_demand(self, model_id: str) -> None:
            self.is_withdrawing.set()
            await self.is_storing.wait()
            await super().withdraw_demand(model_id)

        async def store_records(self, records: Any) -> None:
            self.is_storing.set()
            await self.is_withdrawing.wait()
            await super().store_records(records)

    port = Slow()
    async with served(port, flush_seconds=3600) as service:
        asking = asyncio.ensure_future(service.chat().__aenter__())
        async with service.chat(model="no/such") as answer:
            assert answer.status == 404
        await eventually(lambda: port.demand)
        await service.gateway.stop()
        assert not port.demand
        assert [record.status for record in port.records] == [404]
        asking.cancel()


async def test_stopping_ends_though_the_database_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck(RecordedPort):
        async def report_unreachable(self, neuron_id: int, error: str) -> None:
            await asyncio.Event().wait()

        withdraw_demand = store_records = report_unreachable  # type: ignore[assignment]

    for name in ("cold_load", "recorder", "delivery"):
        monkeypatch.setattr(f"inference.{name}.STOP_SECONDS", 0.05)
    port = Stuck(a_view([a_neuron("http://127.0.0.1:9")], [a_placement()]))
    async with served(port, flush_seconds=3600) as service:
        async with service.chat() as answer:
            assert answer.status == 503
        async with asyncio.timeout(5):
            await service.gateway.stop()


FAILURE = LoadFailureView("repo_fetch_failed", "no /srv/x/y", datetime.now(UTC), "beast")
COOLING = Verdict("hold", (Refusal("beast", RefusalCode.COOLING_DOWN),))
BUSY = Verdict("hold", (Refusal("beast", RefusalCode.BUSY_VICTIMS),))


def test_a_failed_load_is_told_with_its_cause_and_without_paths() -> None:
    error = why_hopeless(
        a_model(failure=FAILURE), COOLING, is_arriving=False, is_reachable={"beast": True}
    )
    assert isinstance(error, ModelLoadFailed)
    assert "no (path)" in error.message
    assert error.extra == {"cause": "repo_fetch_failed"}


def test_a_load_that_is_tried_elsewhere_is_waited_for() -> None:
    model = a_model(failure=FAILURE)
    assert why_hopeless(model, COOLING, is_arriving=True, is_reachable={"beast": True}) is None
    assert why_hopeless(model, None, is_arriving=False, is_reachable={"beast": True}) is None


def test_a_failed_load_is_not_the_end_while_another_neuron_makes_room() -> None:
    leaving = Refusal("puny", RefusalCode.MEMORY_ON_ITS_WAY)
    verdict = Verdict("hold", (*COOLING.refusals, leaving))
    reachable = {"beast": True, "puny": True}
    model = a_model(failure=FAILURE)
    assert why_hopeless(model, verdict, is_arriving=False, is_reachable=reachable) is None


def test_busy_victims_are_waited_for() -> None:
    reachable = {"beast": True}
    assert why_hopeless(a_model(), BUSY, is_arriving=False, is_reachable=reachable) is None


@given(st.dictionaries(st.text(max_size=3), st.booleans(), max_size=4))
def test_a_model_is_away_when_all_it_can_run_on_is(reachable: dict[str, bool]) -> None:
    error = why_hopeless(a_model(), None, is_arriving=False, is_reachable=reachable)
    is_away = bool(reachable) and not any(reachable.values())
    assert isinstance(error, NeuronUnreachable) is is_away


def test_a_refusal_counts_only_where_a_neuron_answers() -> None:
    refused = Verdict("refuse", ())
    error = why_hopeless(a_model(), refused, is_arriving=False, is_reachable={})
    assert isinstance(error, NoFeasibleNeuron)


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_an_eta_is_what_is_left_of_a_usual_load_or_nothing(usual: float, waited: float) -> None:
    eta = eta_of(usual, waited)
    assert (eta is None) == (waited >= usual)
    assert eta is None or 1 <= eta <= usual + 1


def test_without_an_earlier_load_there_is_no_eta() -> None:
    assert eta_of(None, 3.0) is None
