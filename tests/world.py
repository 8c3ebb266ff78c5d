"""The fixed cast of the control plane's tests: two neurons, three devices, two models, two people.

beast has two devices, puny has one; large fits beast only, small fits anywhere. The neurons are
fake ones behind real ports; the rows are what an operator would have entered.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fleet.models import ModelProfile, Neuron
from tests.fakes.neuron import FakeNeuron

BEAST = "beast"
PUNY = "puny"
LARGE = "org/large"
SMALL = "org/small"
OWNER = "owner"
STRANGER = "stranger"

DEVICE_MB = 8_000
LARGE_MB = 6_000
SMALL_MB = 3_000
START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """A clock that goes on when it is told to."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now


@dataclass(slots=True)
class World:
    beast: FakeNeuron
    puny: FakeNeuron
    clock: Clock = field(default_factory=Clock)

    @property
    def neurons(self) -> tuple[FakeNeuron, FakeNeuron]:
        return self.beast, self.puny


@contextmanager
def running_world() -> Iterator[World]:
    """Start both neurons. Needs a database: their rows, and the models', are there too."""
    with (
        FakeNeuron(device_memory_mb=(DEVICE_MB, DEVICE_MB)) as beast,
        FakeNeuron(device_memory_mb=(DEVICE_MB // 2,)) as puny,
    ):
        for neuron in (beast, puny):
            neuron.knobs.model_memory_mb = {LARGE: LARGE_MB, SMALL: SMALL_MB}
        add_row(BEAST, beast)
        add_row(PUNY, puny)
        ModelProfile.objects.create(model_id=LARGE, vram_mb=LARGE_MB)
        ModelProfile.objects.create(model_id=SMALL, vram_mb=SMALL_MB)
        yield World(beast, puny)


def add_row(name: str, neuron: FakeNeuron) -> Neuron:
    return Neuron.objects.create(name=name, endpoint=neuron.url)
