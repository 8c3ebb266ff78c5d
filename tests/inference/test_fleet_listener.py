"""Word from Redis is passed on, and a Redis that no longer answers is noticed and tried again."""

import asyncio
import signal
from pathlib import Path

import pytest
import redis

from fleet.services import FLEET_CHANNEL
from inference import fleet_listener
from inference.fleet_listener import FleetListener
from tests.inference.world import eventually, talking_server, valkey_server

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_listener, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(fleet_listener, "RETRY_SECONDS", 0.01)


async def test_a_redis_that_stops_answering_is_noticed_and_listened_to_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    news: list[None] = []
    with valkey_server(tmp_path) as (url, process):
        listening = asyncio.ensure_future(FleetListener(url, lambda: news.append(None)).run())
        await eventually(lambda: len(news) == 1)  # it listens
        process.send_signal(signal.SIGSTOP)
        await eventually(lambda: "Redis is away" in caplog.text)
        process.send_signal(signal.SIGCONT)
        await eventually(lambda: len(news) > 1)
        num_before = len(news)
        with redis.Redis.from_url(url, retry=None) as client:
            client.publish(FLEET_CHANNEL, b"changed")
        await eventually(lambda: len(news) > num_before)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_a_redis_that_is_only_quiet_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pings: list[None] = []
    ping = redis.asyncio.client.PubSub.ping

    def counting(self, message=None):  # type: ignore[no-untyped-def]
        pings.append(None)
        return ping(self, message)

    monkeypatch.setattr(redis.asyncio.client.PubSub, "ping", counting)
    news: list[None] = []
    with valkey_server(tmp_path) as (url, _):
        listening = asyncio.ensure_future(FleetListener(url, lambda: news.append(None)).run())
        await eventually(lambda: len(pings) == 5)
        assert len(news) == 1
        assert "Redis is away" not in caplog.text
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_something_else_at_the_address_of_redis_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    num_connections = 0

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        writer.write(b"*-7\r\nHTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read(1000)

    async with talking_server(babble) as number:
        listener = FleetListener(f"redis://127.0.0.1:{number}/0", lambda: None)
        listening = asyncio.ensure_future(listener.run())
        await eventually(lambda: num_connections > 2)
        assert "Redis is away" in caplog.text
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
