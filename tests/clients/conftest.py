"""A served demo model, a scripted neuron behind a gateway, and a way out that must stay unused."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.clients.held_device import HOLD_FILE
from tests.clients.programs import PROGRAMS
from tests.clients.stage import DEMO_MODEL, Demo, Scripted, make_greedy
from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.http import get_json
from tests.fakes.neuron import FakeNeuron
from tests.inference.world import (
    MODEL,
    RecordedPort,
    a_model,
    a_neuron,
    a_placement,
    a_view,
    served,
    talking_server,
)

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


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    folder = Path(tempfile.mkdtemp(prefix="cortex-clients-"))
    hold = folder / "hold"
    cluster = Cluster(folder / "data", {**ENVIRONMENT, HOLD_FILE: str(hold)})
    make_greedy(folder / "data" / "models" / DEMO_MODEL)
    try:
        cluster.start()
        wait_until(lambda: get_json(f"{cluster.api}/health")["status"] == "ok", what="it can serve")
        yield Demo(cluster, hold)
    finally:
        print("\n".join(cluster.output[-200:]))  # noqa: T201 - shown when a test failed
        assert cluster.stop() == 0
        shutil.rmtree(folder, ignore_errors=True)


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
