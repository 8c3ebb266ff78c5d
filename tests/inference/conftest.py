"""One fake neuron that has the model, and a gateway before it."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.neuron import FakeNeuron
from tests.inference.world import (
    MODEL,
    RecordedPort,
    Served,
    a_neuron,
    a_placement,
    a_view,
    served,
)


@pytest.fixture
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron() as neuron:
        neuron.place(MODEL)
        yield neuron


@pytest.fixture
async def service(neuron: FakeNeuron) -> AsyncIterator[Served]:
    view = a_view([a_neuron(neuron.url)], [a_placement()], aliases={"local/large": MODEL})
    async with served(RecordedPort(view)) as service:
        yield service
