"""What the gateway's tests share: a recorder in place of the database, views, a served gateway.

`RecordedPort` is a `FleetPort` whose view is what the test says; `served` runs a real uvicorn with
the real consumer in the test's own loop.
"""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from cortex_site.embedded import find_valkey
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.selectors import ServedModel, ServedNeuron, ServedPlacement, ServingView, Verdict
from inference import gateway as gateway_module
from inference.consumers import GatewayConsumer
from inference.gateway import Gateway, GatewayConfig
from inference.models import RequestRecord

MODEL = "org/model"
DEADLINE_SECONDS = 10.0


def a_model(model_id: str = MODEL, **changes: Any) -> ServedModel:
    model = ServedModel(
        model_id=model_id,
        enabled=True,
        harness="torch",
        capabilities=("chat",),
        limit_context=32_768,
        limit_input=32_768,
        limit_output=32_768,
        tool_call=False,
        reasoning=False,
        cost_input=None,
        cost_output=None,
        load_seconds=None,
        feasible_on=("beast",),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return replace(model, **changes)


def a_neuron(endpoint: str, id: int = 1, name: str = "beast", **changes: Any) -> ServedNeuron:
    neuron = ServedNeuron(
        id=id,
        name=name,
        endpoint=endpoint,
        token=None,
        phase=NeuronPhase.HEALTHY,
        dispatchable=True,
    )
    return replace(neuron, **changes)


def a_placement(id: int = 11, neuron_id: int = 1, **changes: Any) -> ServedPlacement:
    placement = ServedPlacement(
        id=id,
        model_id=MODEL,
        neuron_id=neuron_id,
        phase=PlacementPhase.READY,
        desired_present=True,
        device_indexes=(0,),
        memory_bytes=1000 << 20,
        in_flight=0,
        queued=0,
        stage="",
        percent=0.0,
        requested_at=datetime.now(UTC) - timedelta(seconds=1),
        ready_at=None,
        servable=True,
    )
    return replace(placement, **changes)


def a_view(
    neurons: Sequence[ServedNeuron] = (),
    placements: Sequence[ServedPlacement] = (),
    models: Sequence[ServedModel] | None = None,
    aliases: Mapping[str, str] | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
) -> ServingView:
    return ServingView(
        taken_at=datetime.now(UTC),
        models={model.model_id: model for model in models or [a_model()]},
        aliases=aliases or {},
        placements=tuple(placements),
        neurons={neuron.id: neuron for neuron in neurons},
        verdicts=verdicts or {},
    )


@dataclass
class RecordedPort:
    """Keeps what a gateway tells the control plane."""

    view: ServingView = field(default_factory=a_view)
    calls: list[tuple[str, str]] = field(default_factory=list)
    demand: dict[str, int] = field(default_factory=dict)
    """The rows as they would be: model -> how many wait."""
    unreachable: list[int] = field(default_factory=list)
    records: list[RequestRecord] = field(default_factory=list)
    used: dict[int, datetime] = field(default_factory=dict)
    fail_store: bool = False

    async def read_view(self) -> ServingView:
        return self.view

    async def request_placement(self, model_id: str, num_waiting: int) -> None:
        self.calls.append(("request", model_id))
        self.demand[model_id] = num_waiting

    async def renew_demand(self, num_waiting_by_model: Mapping[str, int]) -> None:
        self.demand = dict(num_waiting_by_model)

    async def withdraw_demand(self, model_id: str) -> None:
        self.calls.append(("withdraw", model_id))
        self.demand.pop(model_id, None)

    async def report_unreachable(self, neuron_id: int, error: str) -> None:
        self.unreachable.append(neuron_id)

    async def store_records(self, records: Sequence[RequestRecord]) -> None:
        if self.fail_store:
            raise OSError("no database")
        self.records.extend(records)

    async def note_used(self, last_used_by_placement: Mapping[int, datetime]) -> None:
        self.used.update(last_used_by_placement)

    def num_requests_for(self, model_id: str) -> int:
        return self.calls.count(("request", model_id))


@dataclass
class Served:
    """A gateway behind a real server, and a client of it."""

    url: str
    gateway: Gateway
    port: RecordedPort
    http: aiohttp.ClientSession

    def show(self, view: ServingView) -> None:
        """Let the fleet be like this from now on."""
        self.port.view = view
        self.gateway.fleet.swap(view)

    def chat(self, **body: Any) -> Any:
        """Send a chat request; use it as aiohttp's context manager."""
        return self.http.post(f"{self.url}/v1/chat/completions", json=chat_body(**body))

    async def record(self, index: int = -1) -> RequestRecord:
        """Return a record once it is written."""
        await eventually(lambda: len(self.port.records) >= (1 if index == -1 else index + 1))
        return self.port.records[index]

    async def at_rest(self) -> None:
        """Return once nothing is counted as in flight or waiting. Raises AssertionError."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                self.gateway.check_integrity()
                return
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def served(port: RecordedPort, **config: Any) -> AsyncIterator[Served]:
    """Run a gateway over `port`. At the end nothing may be left in flight."""
    defaults = {"flush_seconds": 0.02, "urgent_poll_seconds": 0.05}
    gateway = Gateway(GatewayConfig(**{**defaults, **config}), port)
    await gateway.start()
    gateway_module._running = gateway
    try:
        async with (
            uvicorn_server(GatewayConsumer.as_asgi()) as url,
            aiohttp.ClientSession() as http,
        ):
            service = Served(url, gateway, port, http)
            yield service
            await service.at_rest()
    finally:
        gateway_module._running = None
        await gateway.stop()


@contextlib.asynccontextmanager
async def uvicorn_server(application: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port of this machine; yields its URL."""
    config = uvicorn.Config(
        application, port=0, lifespan="off", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve())
    try:
        await eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await serving


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def talking_server(talk: Talk) -> AsyncIterator[int]:
    """Let `talk` answer each connection to a free port; yields the port. At the end all is cut."""
    talking: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in talking:
            task.cancel()
        await asyncio.gather(*talking)


@contextlib.contextmanager
def valkey_server(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run a server on a socket of its own, as `make run` has it; yields its URL."""
    path = folder / "s"
    command = [find_valkey(), "--port", "0", "--unixsocket", str(path), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, "the server does not start"
        process.poll()
    yield f"unix://{path}", process
    process.terminate()
    process.wait(10)


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds. Raises AssertionError after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


def chat_body(**changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello there"}]}
    return {**body, **changes}
