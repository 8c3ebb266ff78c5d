"""The view: swapped whole, fresh by poll and sooner by Redis, with this gateway's own counts."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.services import FLEET_CHANNEL
from inference import fleet_view as fleet_view_module
from inference.dispatch.failover import TransportFailure
from inference.fleet_view import FleetView
from tests.inference.world import (
    MODEL,
    RecordedPort,
    a_model,
    a_neuron,
    a_placement,
    a_view,
    eventually,
    valkey_server,
)


def a_fleet_view(port: RecordedPort, poll_seconds: float = 3600) -> FleetView:
    return FleetView(port, poll_seconds, urgent_poll_seconds=0.01, max_wait_seconds=60)


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with valkey_server(tmp_path) as (url, _):
        yield url


async def test_a_poll_alone_keeps_it_fresh() -> None:
    port = RecordedPort()
    fleet = a_fleet_view(port, poll_seconds=0.01)
    await fleet.start(None)
    port.view = a_view(models=[a_model("org/new")])
    await eventually(lambda: fleet.find_model("org/new"))
    await fleet.stop()


async def test_a_message_on_redis_makes_it_fresh_at_once(redis_url: str) -> None:
    port = RecordedPort()
    fleet = a_fleet_view(port)
    await fleet.start(redis_url)
    with redis.Redis.from_url(redis_url, retry=None) as client:
        await eventually(lambda: _num_listeners(client) == 1)
        await fleet.wait_for_change(0.5)  # the read that follows the subscription
        port.view = a_view(models=[a_model("org/new")])
        assert fleet.find_model("org/new") is None
        client.publish(FLEET_CHANNEL, b"changed")
        await eventually(lambda: fleet.find_model("org/new"))
    await fleet.stop()


def _num_listeners(client: redis.Redis) -> int:
    try:
        ((_, num_listeners),) = client.pubsub_numsub(FLEET_CHANNEL)
    except redis.RedisError:
        return 0
    return int(num_listeners)


async def test_a_redis_that_is_away_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    port = RecordedPort()
    fleet = a_fleet_view(port, poll_seconds=0.01)
    await fleet.start("unix:///nonexistent/socket")
    port.view = a_view(models=[a_model("org/new")])
    await eventually(lambda: fleet.find_model("org/new"))
    await eventually(lambda: "Redis is away" in caplog.text)
    await fleet.stop()


async def test_a_database_that_is_away_leaves_the_last_view(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(RecordedPort):
        num_reads = 0

        async def read_view(self):  # type: ignore[no-untyped-def]
            self.num_reads += 1
            if self.num_reads > 1:
                raise OSError("no database")
            return self.view

    port = Failing()
    fleet = a_fleet_view(port, poll_seconds=0.01)
    await fleet.start(None)
    await eventually(lambda: port.num_reads > 3)
    assert fleet.find_model(MODEL) is not None
    assert caplog.text.count("The fleet cannot be read") == 1
    await fleet.stop()


async def test_someone_who_waits_is_woken_by_a_swap_and_by_time() -> None:
    fleet = a_fleet_view(RecordedPort())
    waiting = asyncio.ensure_future(fleet.wait_for_change(3600))
    await asyncio.sleep(0)
    fleet.swap(a_view())
    await waiting
    await fleet.wait_for_change(0.001)


def loads(fleet: FleetView) -> dict[int, int]:
    return {candidate.placement_id: candidate.load for candidate in fleet.candidates(MODEL)}


async def test_load_counts_what_was_observed_and_what_was_sent_since() -> None:
    fleet = a_fleet_view(RecordedPort())
    busy, idle = a_placement(1, in_flight=3, queued=1), a_placement(2)
    fleet.swap(a_view([a_neuron("x")], [busy, idle]))
    assert loads(fleet) == {1: 4, 2: 0}
    with fleet.sending_to(idle), fleet.sending_to(idle):
        assert loads(fleet) == {1: 4, 2: 2}
        # The next poll sees our two: they count once.
        fleet.swap(a_view([a_neuron("x")], [busy, a_placement(2, in_flight=2)]))
        assert loads(fleet) == {1: 4, 2: 2}
    assert loads(fleet) == {1: 4, 2: 0}
    fleet.check_integrity()


async def test_aliases_lead_to_models_and_disabled_models_are_none() -> None:
    fleet = a_fleet_view(RecordedPort())
    models = [a_model(), a_model("off", enabled=False)]
    fleet.swap(a_view(models=models, aliases={"large": MODEL, "to-off": "off", "to-none": "gone"}))
    assert fleet.find_model("large") is fleet.find_model(MODEL)
    assert [fleet.find_model(name) for name in ("off", "to-off", "to-none", "")] == [None] * 4


def is_closed(fleet: FleetView) -> list[bool]:
    return [candidate.breaker_closed for candidate in fleet.candidates(MODEL)]


async def test_a_refused_connection_closes_off_the_neuron_until_it_answers() -> None:
    fleet = a_fleet_view(RecordedPort())
    placement = a_placement()
    fleet.swap(a_view([a_neuron("x")], [placement]))
    fleet.note_failure(placement, TransportFailure.REFUSED)
    assert is_closed(fleet) == [False]
    assert not fleet.is_reachable("beast")
    fleet.note_answer(placement)
    assert is_closed(fleet) == [True]
    assert fleet.is_reachable("beast")


async def test_a_slow_model_closes_off_itself_and_not_its_neuron() -> None:
    fleet = a_fleet_view(RecordedPort())
    slow, quick = a_placement(1), a_placement(2)
    fleet.swap(a_view([a_neuron("x")], [slow, quick]))
    for _ in range(3):
        fleet.note_failure(slow, TransportFailure.SILENT)
    assert is_closed(fleet) == [False, True]
    assert fleet.is_reachable("beast")


async def test_a_placement_on_a_neuron_that_is_not_in_the_view_is_no_candidate() -> None:
    fleet = a_fleet_view(RecordedPort())
    fleet.swap(a_view([], [a_placement(phase=PlacementPhase.READY)]))
    (candidate,) = fleet.candidates(MODEL)
    assert not candidate.neuron_dispatchable


async def test_however_many_ask_the_fleet_is_read_only_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[None] = []

    class Counting(RecordedPort):
        async def read_view(self):  # type: ignore[no-untyped-def]
            reads.append(None)
            return self.view

    monkeypatch.setattr(fleet_view_module, "READ_GAP_SECONDS", 3600.0)
    fleet = a_fleet_view(Counting(), poll_seconds=0.0)
    await fleet.start(None)
    for _ in range(20):
        fleet.refresh_soon()
        await asyncio.sleep(0.001)
    assert len(reads) == 1
    await fleet.stop()


async def test_a_neuron_that_was_found_well_again_is_asked_at_once() -> None:
    fleet = a_fleet_view(RecordedPort())
    placement = a_placement()
    fleet.swap(a_view([a_neuron("x")], [placement]))
    assert fleet.note_failure(placement, TransportFailure.REFUSED)
    fleet.swap(a_view([a_neuron("x")], [placement]))  # says what was true before
    assert is_closed(fleet) == [False]
    fleet.swap(a_view([a_neuron("x", phase=NeuronPhase.UNHEALTHY)], [placement]))
    assert is_closed(fleet) == [False]
    fleet.swap(a_view([a_neuron("x")], [placement]))
    assert is_closed(fleet) == [True]


async def test_only_the_first_of_many_refused_connections_is_news() -> None:
    fleet = a_fleet_view(RecordedPort())
    placement = a_placement()
    fleet.swap(a_view([a_neuron("x")], [placement]))
    news = [fleet.note_failure(placement, TransportFailure.REFUSED) for _ in range(8)]
    assert news == [True] + [False] * 7
    assert fleet._breaker(1).num_failures == 1
