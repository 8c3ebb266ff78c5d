"""A served demo model, a scripted neuron behind a gateway, and a way out that must stay unused."""

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.held_device import HOLD_FILE
from tests.clients.programs import PROGRAMS
from tests.demo import demo_model_folder
from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.http import get_json
from tests.fakes.neuron import FakeNeuron
from tests.inference.world import (
    MODEL,
    RecordedPort,
    Served,
    a_model,
    a_neuron,
    a_placement,
    a_view,
    served,
    talking_server,
)

DEMO_MODEL = "cortex-demo"
CLIENT_LEFT = 499
ENVIRONMENT = {
    "NEURON_DEVICES__CPU": "1",
    "NEURON_DEVICES__CPU_MEMORY_MB": "80",
    "NEURON_DEVICE_COMMAND": json.dumps([sys.executable, "-m", "tests.clients.held_device"]),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session", autouse=True)
def clients_are_installed() -> None:
    assert PROGRAMS.is_dir(), "install the clients first: make test-clients"


# --- the demo model, served by the real thing ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Demo:
    """`manage.py up` with the demo model, which says the same to the same prompt each time."""

    cluster: Cluster
    hold: Path
    """While this file exists, answers stand still after their first token."""

    @property
    def url(self) -> str:
        return self.cluster.api

    def records_since(self, began: float) -> list[dict[str, Any]]:
        rows = self.cluster.status()["requests"]
        return [row for row in rows if row["at"] >= began]

    def wait_for_records(self, began: float) -> list[dict[str, Any]]:
        """Return what is recorded since then, once the gateway is through with it."""
        return wait_until(lambda: self.records_since(began), what="a record")

    def wait_for_rest(self) -> None:
        """Return once nothing is running or waiting in the neuron."""
        wait_until(lambda: not self._num_running(), 10.0, "nothing in flight")

    def _num_running(self) -> int:
        models = get_json(f"{self.cluster.neuron}/health")["models"]
        return sum(model["in_flight"] + model["queue_depth"] for model in models)


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    folder = Path(tempfile.mkdtemp(prefix="cortex-clients-"))
    hold = folder / "hold"
    cluster = Cluster(folder / "data", {**ENVIRONMENT, HOLD_FILE: str(hold)})
    _make_greedy(folder / "data" / "models" / DEMO_MODEL)
    try:
        cluster.start()
        yield Demo(cluster, hold)
    finally:
        print("\n".join(cluster.output[-200:]))  # noqa: T201 - shown when a test failed
        assert cluster.stop() == 0
        shutil.rmtree(folder, ignore_errors=True)


def _make_greedy(folder: Path) -> None:
    """Have the model take the likeliest token for clients that name no temperature."""
    folder.unlink()
    folder.mkdir()
    for file in demo_model_folder().iterdir():
        (folder / file.name).symlink_to(file)
    settings = folder / "generation_config.json"
    greedy = {**json.loads(settings.read_text()), "do_sample": False}
    settings.unlink()
    settings.write_text(json.dumps(greedy))


# --- a scripted neuron behind a gateway ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scripted:
    neuron: FakeNeuron
    gateway: Served

    @property
    def url(self) -> str:
        return self.gateway.url

    def tool_requests(self) -> list[dict[str, Any]]:
        """What the neuron was asked with tools on offer, in order."""
        asked = self.neuron.requests_to("/v1/chat/completions")
        bodies = [json.loads(request.body) for request in asked]
        return [body for body in bodies if body.get("tools")]


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    with FakeNeuron() as neuron:
        neuron.place(MODEL)
        view = a_view(
            neurons=[a_neuron(neuron.url)],
            placements=[a_placement()],
            models=[a_model(tool_call=True, reasoning=True)],
        )
        async with served(RecordedPort(view)) as gateway:
            yield Scripted(neuron, gateway)
        assert neuron.in_flight == 0


# --- the way out ---------------------------------------------------------------------------------


@pytest.fixture
async def outside() -> AsyncIterator[str]:
    """A proxy to everywhere that nobody may use: clients speak to Cortex alone."""
    asked: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())

    async with talking_server(refuse) as port:
        yield f"http://127.0.0.1:{port}"
    assert asked == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a client works."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def aborted(demo: Demo) -> Iterator[None]:
    """What is asked inside is left in the middle: afterwards nothing is in flight anywhere."""
    began = time.time()
    yield
    demo.wait_for_rest()
    records = demo.wait_for_records(began)
    assert [record["status"] for record in records] == [CLIENT_LEFT]
