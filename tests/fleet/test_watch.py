"""The watch itself: real time, real neurons, and several of them at once."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest
from celery import current_app
from django.db import connection
from django.utils import timezone

from fleet import controller, neuron_client, services, tasks, watch
from fleet.models import Lease, ModelProfile
from fleet.neuron_client import NeuronCalls
from fleet.services.lease import take_lease
from tests.fleet.conftest import Notified, live, neuron_row
from tests.world import BEAST, LARGE, PUNY, SMALL, Clock, World

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]


@pytest.fixture
def real_world(transactional_db: None, world: World) -> World:
    return world


def want(model_id: str) -> None:
    services.request_placement(model_id, "gateway-1", 1, timezone.now(), lifetime_seconds=60)


def wait_for(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def watching(**options: bool) -> Iterator[threading.Thread]:
    def run() -> None:
        try:
            watch.watch_fleet(**options)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(30)


def test_one_watch_sees_a_cold_load_through(real_world: World) -> None:
    real_world.beast.knobs.load_seconds = 0.3
    want(SMALL)
    with watching():
        wait_for(lambda: live(SMALL) == [(BEAST, "ready")])


def test_a_wish_made_meanwhile_is_seen_by_the_same_watch(real_world: World) -> None:
    real_world.beast.knobs.load_seconds = float("inf")
    want(LARGE)
    with watching() as thread:
        wait_for(lambda: live(LARGE) == [(BEAST, "loading")])
        want(SMALL)
        wait_for(lambda: live(SMALL) != [])
        assert thread.is_alive()


def test_a_watch_that_ends_while_something_moves_asks_for_the_next(
    real_world: World, notified: Notified
) -> None:
    real_world.beast.knobs.load_seconds = float("inf")
    want(LARGE)
    asked_before = notified.wishes
    assert watch.watch_fleet()
    assert notified.wishes == asked_before + 1


def test_news_that_came_during_anothers_pass_is_not_forgotten(world: World) -> None:
    """The other one read its snapshot before; here its worker is killed as well."""
    ModelProfile.objects.filter(model_id=SMALL).update(min_placements=1)
    clock = Clock(timezone.now())
    take_lease(controller.PASS_LEASE, "killed", clock(), 20)
    with NeuronCalls() as calls:
        # Each look at the clock takes a second; the watch itself never grows old.
        one = watch.Watch(calls, lambda: clock.advance(1), "watch", monotonic=lambda: 0.0)
        one.run(is_hurried=False)
        assert live(SMALL) == [(BEAST, "ready")]


def test_a_watch_holds_up_passes_for_moments_only(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def decide(now: datetime) -> tuple[()]:
        lease = Lease.objects.get(name=controller.PASS_LEASE)
        seen.append((lease.expires_at - now).total_seconds())
        return ()

    monkeypatch.setattr(controller, "decide", decide)
    assert watch.watch_fleet(Clock(), is_hurried=True)
    assert set(seen) == {3.0}


def test_a_quiet_fleet_is_polled_once_and_left(real_world: World, notified: Notified) -> None:
    assert watch.watch_fleet()
    assert len(real_world.beast.requests_to("/health")) == 1
    assert neuron_row(BEAST).phase == "healthy"
    assert notified.wishes == 0


def test_there_is_one_watch_at_a_time(real_world: World) -> None:
    take_lease(watch.WATCH_LEASE, "another worker", timezone.now(), 60)
    assert not watch.watch_fleet()
    assert real_world.beast.requests == []


def test_what_a_killed_worker_left_is_taken_up(real_world: World) -> None:
    past = timezone.now() - timezone.timedelta(seconds=4)
    take_lease(watch.WATCH_LEASE, "killed", past, watch.WATCH_LEASE_SECONDS)
    assert watch.watch_fleet()
    assert Lease.objects.get(name=watch.WATCH_LEASE).holder == ""


def test_a_neuron_that_hangs_delays_no_other(
    real_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LIMIT_SECONDS", 1.5)
    real_world.puny.knobs.hang = True
    want(SMALL)
    with watching(is_hurried=True) as thread:
        wait_for(lambda: live(SMALL) == [(BEAST, "ready")])
        assert thread.is_alive()
    assert neuron_row(PUNY).phase == "unknown"


def test_a_poll_that_takes_too_long_is_a_miss(
    real_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neuron_client, "CALL_TIMEOUT_SECONDS", 0.2)
    real_world.puny.knobs.hang = True
    for _ in range(3):
        assert watch.watch_fleet()
    puny = neuron_row(PUNY)
    assert (puny.phase, puny.num_missed_polls) == ("unhealthy", 3)
    assert "no answer" in puny.last_error
    real_world.puny.knobs.hang = False
    assert watch.watch_fleet()
    assert neuron_row(PUNY).phase == "healthy"


def test_the_tasks_have_the_names_others_send(real_world: World) -> None:
    assert {"fleet.watch_fleet", "fleet.reconcile_fleet"} <= set(current_app.tasks)
    want(SMALL)
    tasks.reconcile_fleet()
    tasks.watch_fleet()
    assert live(SMALL) == [(BEAST, "ready")]
