"""The gateway over real rows: queries on a request's path, cold loads, records, what it reports."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import aiohttp
import pytest
from django.db import close_old_connections
from django.db.backends.utils import CursorWrapper

from fleet.models import Demand, Neuron
from fleet.planner.phases import NeuronPhase
from fleet.services import register_profile
from fleet.watch import watch_fleet
from inference import gateway as gateway_module
from inference import selectors, services
from inference.consumers import GatewayConsumer
from inference.fleet_port import DatabaseFleetPort
from inference.models import RequestRecord
from tests.inference.world import RecordedPort, Served, eventually, uvicorn_server
from tests.world import BEAST, LARGE, PUNY, SMALL, World, running_world

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture
def world() -> Iterator[World]:
    with running_world() as world:
        yield world


@pytest.fixture(autouse=True)
def _no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `worker` below watches anyway; without a broker each attempt to send takes seconds."""
    monkeypatch.setattr("fleet.notify._send_reconcile", lambda: None)


@pytest.fixture
def worker() -> Iterator[None]:
    """Watches the fleet as a Celery worker and beat would, until the test is over."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.02):
            watch_fleet()
        close_old_connections()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    is_over.set()
    thread.join()


@asynccontextmanager
async def running_gateway() -> AsyncIterator[Served]:
    gateway = await gateway_module.startup()
    try:
        async with (
            uvicorn_server(GatewayConsumer.as_asgi()) as url,
            aiohttp.ClientSession() as http,
        ):
            service = Served(url, gateway, RecordedPort(), http)
            yield service
            await service.at_rest()
    finally:
        await gateway_module.shutdown()


async def chat(service: Served, model: str, stream: bool = True) -> tuple[int, bytes]:
    async with service.chat(model=model, stream=stream) as answer:
        return answer.status, await answer.read()


async def in_database(read):  # type: ignore[no-untyped-def]
    def reading():  # type: ignore[no-untyped-def]
        try:
            return read()
        finally:
            close_old_connections()

    return await asyncio.to_thread(reading)


async def test_twenty_clients_of_a_model_not_loaded_are_one_load_and_twenty_answers(
    world: World, worker: None
) -> None:
    for neuron in world.neurons:
        neuron.knobs.load_seconds = 0.1
    async with running_gateway() as service:
        answers = await asyncio.gather(*(chat(service, SMALL, n % 2 == 0) for n in range(20)))
        assert [status for status, _ in answers] == [200] * 20
        assert sum(neuron.num_loads[SMALL] for neuron in world.neurons) == 1
    records = await in_database(lambda: selectors.recent_requests(100))
    assert len(records) == 20  # all of them: the gateway has stopped
    assert {record.status for record in records} == {200}
    assert all(record.cold_start and record.completion_tokens == 8 for record in records)
    assert await in_database(Demand.objects.count) == 0


async def test_no_query_between_request_and_first_token(
    world: World, worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway() as service:
        await chat(service, SMALL)
        await eventually(lambda: not service.gateway.cold_loads._told)  # the wish is withdrawn
        queries: list[str] = []
        execute = CursorWrapper.execute

        def counting(self: CursorWrapper, sql: str, params: object = None) -> object:
            if threading.current_thread().name.startswith("gateway"):
                queries.append(sql)
            return execute(self, sql, params)

        monkeypatch.setattr(CursorWrapper, "execute", counting)
        monkeypatch.setattr(service.gateway.recorder, "flush", _nothing)
        monkeypatch.setattr(service.gateway.fleet, "_refresh", _nothing)
        for stream in (True, False):
            assert (await chat(service, SMALL, stream))[0] == 200
        assert queries == []
        monkeypatch.undo()
        monkeypatch.setattr(CursorWrapper, "execute", counting)
        service.gateway.fleet.refresh_soon()
        await eventually(lambda: queries)  # the count sees the gateway's threads


async def _nothing() -> bool:
    return True


async def test_a_dead_neuron_is_503_at_once_and_its_row_says_so(world: World, worker: None) -> None:
    async with running_gateway() as service:
        assert (await chat(service, LARGE))[0] == 200
        world.beast.stop()  # the only neuron large fits on
        for _ in range(2):
            async with service.chat(model=LARGE, stream=True) as answer:
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) >= 1
    beast = await in_database(lambda: Neuron.objects.get(name=BEAST))
    assert beast.phase == NeuronPhase.UNHEALTHY


async def test_starting_twice_is_starting_once(world: World) -> None:
    first, second = await asyncio.gather(gateway_module.startup(), gateway_module.startup())
    assert first is second is gateway_module.current()
    await gateway_module.shutdown()
    await gateway_module.shutdown()
    assert gateway_module.current() is None


async def test_a_gateway_without_lifespan_starts_with_its_first_request(world: World) -> None:
    async with uvicorn_server(GatewayConsumer.as_asgi()) as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/v1/models") as answer:
            assert [entry["id"] for entry in (await answer.json())["data"]]
        await gateway_module.shutdown()


async def test_a_refused_connection_makes_the_neuron_unhealthy(world: World) -> None:
    row = await in_database(lambda: Neuron.objects.get(name=PUNY))
    await in_database(lambda: Neuron.objects.update(phase=NeuronPhase.HEALTHY))
    port = DatabaseFleetPort("gateway-test")
    await port.report_unreachable(row.pk, "connection refused")
    view = await port.read_view()
    assert not view.neurons[row.pk].dispatchable
    port.close()


def test_text_that_no_database_takes_is_made_storable() -> None:
    record = RequestRecord(
        request_id="r",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        requested_model="a\0b" + "x" * 500,
        user_agent="\0",
        dialect="chat",
        status=200,
        latency_seconds=0.1,
    )
    services.store_records([record])
    (stored,) = selectors.recent_requests(1)
    assert stored.requested_model == ("ab" + "x" * 500)[:200]
    assert stored.user_agent == ""


def test_old_records_are_pruned_and_young_ones_counted() -> None:
    for day, status in ((1, 200), (2, 503), (3, 499)):
        services.store_records(
            [
                RequestRecord(
                    request_id=str(day),
                    at=datetime(2026, 1, day, tzinfo=UTC),
                    dialect="chat",
                    status=status,
                    cold_start=day == 3,
                    latency_seconds=0.1,
                )
            ]
        )
    assert services.prune(datetime(2026, 1, 2, tzinfo=UTC)) == 1
    assert services.prune(datetime(2026, 1, 2, tzinfo=UTC)) == 0
    counts = selectors.request_counts(datetime(2026, 1, 2, tzinfo=UTC))
    assert (counts.num_requests, counts.num_errors, counts.num_left) == (2, 1, 1)
    assert counts.num_cold_starts == 1
    assert [record.request_id for record in selectors.recent_requests(10)] == ["3", "2"]


async def test_a_profile_that_appears_can_be_asked_for(world: World, worker: None) -> None:
    async with running_gateway() as service:
        assert (await chat(service, "org/new"))[0] == 404
        await in_database(lambda: register_profile("org/new", vram_mb=100))
        service.gateway.fleet.refresh_soon()
        await eventually(lambda: service.gateway.fleet.find_model("org/new"))
        assert (await chat(service, "org/new"))[0] == 200
