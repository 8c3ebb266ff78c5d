"""A thousand clients that leave at any moment: all is given back, and each has left one record."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fleet.planner.phases import PlacementPhase
from tests.fakes.neuron import FakeNeuron
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

NUM_CLIENTS = 1_000
NUM_AT_ONCE = 100
LONGEST_STAY_SECONDS = 0.25
LOADING = "org/loading"
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 100},
    "/v1/responses": {"input": "hi"},
}


@dataclass(frozen=True)
class Leaver:
    """One client, and how far it gets."""

    id: str
    path: str
    body: bytes
    sent_share: float
    """How much of head and body it sends."""
    stay_seconds: float

    @property
    def request(self) -> bytes:
        return self.head + self.body

    @property
    def head(self) -> bytes:
        return (
            f"POST {self.path} HTTP/1.1\r\nhost: x\r\nx-request-id: {self.id}\r\n"
            f"content-length: {len(self.body)}\r\n\r\n"
        ).encode()

    @property
    def sent(self) -> bytes:
        return self.request[: round(self.sent_share * len(self.request))]


@pytest.fixture
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as neuron:
        neuron.place(MODEL)
        neuron.knobs.max_in_flight = NUM_CLIENTS
        neuron.knobs.first_token_delay_seconds = 0.05
        neuron.knobs.token_delay_seconds = 0.02
        neuron.knobs.num_tokens = 100
        yield neuron


@pytest.fixture
async def service(neuron: FakeNeuron) -> AsyncIterator[Served]:
    placements = [
        a_placement(),
        a_placement(id=12, model_id=LOADING, phase=PlacementPhase.LOADING),
    ]
    models = [a_model(), a_model(LOADING)]
    view = a_view([a_neuron(neuron.url)], placements, models)
    async with served(RecordedPort(view)) as service:
        yield service


def leavers() -> list[Leaver]:
    """Half of them send all and stay a while; the others leave in the middle of what they send."""
    chance = random.Random(20)
    found = []
    for number in range(NUM_CLIENTS):
        path = chance.choice(list(BODIES))
        model = LOADING if chance.random() < 0.3 else MODEL
        body = {**BODIES[path], "model": model, "stream": chance.random() < 0.7}
        share = chance.random() if chance.random() < 0.2 else 1.0
        stay_seconds = chance.random() * LONGEST_STAY_SECONDS
        found.append(Leaver(f"l-{number}", path, json.dumps(body).encode(), share, stay_seconds))
    return found


async def visit(port: int, leaver: Leaver, places: asyncio.Semaphore) -> None:
    async with places:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(leaver.sent)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(leaver.stay_seconds):
                while await reader.read(1 << 16):
                    pass
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_thousand_clients_leave_and_nothing_is_left_of_them(
    service: Served, neuron: FakeNeuron
) -> None:
    everyone = leavers()
    port = int(service.url.rpartition(":")[2])
    places = asyncio.Semaphore(NUM_AT_ONCE)
    await asyncio.gather(*(visit(port, leaver, places) for leaver in everyone))
    await service.at_rest()
    await eventually(lambda: neuron.in_flight == 0)
    came = {leaver.id for leaver in everyone if len(leaver.sent) >= len(leaver.head)}
    await service.gateway.recorder.flush()
    records = Counter(record.request_id for record in service.port.records)
    assert records == dict.fromkeys(came, 1)
    assert {record.status for record in service.port.records} == {499}
    assert not service.port.demand
