"""A fleet in motion without a worker: polls and passes happen when a test says so."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from fleet import controller, notify, services, watch
from fleet.models import FleetEvent, Neuron, Placement
from fleet.neuron_client import NeuronCalls
from fleet.planner.phases import LIVE
from tests.world import BEAST, DEVICE_MB, PUNY, SMALL, Clock, World, running_world


@dataclass(slots=True)
class Notified:
    """What other processes would have been told."""

    publications: int = 0
    wishes: int = 0

    def publish(self) -> None:
        self.publications += 1

    def wish(self) -> None:
        self.wishes += 1


@dataclass(slots=True)
class Driver:
    """Turns the fleet by hand: each step polls every neuron, makes a pass and lets 1 s go by."""

    world: World
    step_seconds: float = 1.0
    calls: NeuronCalls = field(init=False)

    @property
    def clock(self) -> Clock:
        return self.world.clock

    def poll(self) -> None:
        watch.start_polls(self.calls, self.clock)
        watch.record_answers(self.calls, self.clock, 10)

    def step(self) -> None:
        self.poll()
        controller.run_once(self.calls, self.clock)
        self.clock.advance(self.step_seconds)

    def until(self, condition: Callable[[], object], limit_seconds: float = 10) -> None:
        deadline = time.monotonic() + limit_seconds
        while not condition():
            assert time.monotonic() < deadline, f"{condition} never came true: {history()}"
            self.step()

    def settle(self, steps: int = 4) -> None:
        for _ in range(steps):
            self.step()


def placements(model_id: str, **facts: object) -> list[Placement]:
    rows = Placement.objects.filter(profile__model_id=model_id, **facts)
    return list(rows.select_related("neuron", "profile").order_by("pk"))


def live(model_id: str) -> list[tuple[str, str]]:
    """Where the model is, and in which phase."""
    return [(p.neuron.name, p.phase) for p in placements(model_id, phase__in=sorted(LIVE))]


def history() -> list[str]:
    return list(FleetEvent.objects.order_by("pk").values_list("message", flat=True))


def neuron_row(name: str) -> Neuron:
    return Neuron.objects.get(name=name)


@pytest.fixture(autouse=True)
def notified(monkeypatch: pytest.MonkeyPatch) -> Notified:
    told = Notified()
    monkeypatch.setattr(notify, "_publish", told.publish)
    monkeypatch.setattr(notify, "_send_reconcile", told.wish)
    return told


@pytest.fixture
def world(db: None) -> Iterator[World]:
    with running_world() as cast:
        yield cast


@pytest.fixture
def fleet(world: World) -> Iterator[Driver]:
    driver = Driver(world)
    with NeuronCalls() as calls:
        driver.calls = calls
        yield driver


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


def vanish(fleet: Driver) -> None:
    """The load begins, and brings the neuron down."""
    fleet.world.beast.knobs.load_seconds = float("inf")
    fleet.until(lambda: live(SMALL) == [(BEAST, "loading")])
    fleet.world.beast.restart()
    fleet.poll()
