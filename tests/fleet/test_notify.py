"""Telling others: after the commit, and never anybody's error."""

import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import transaction

from fleet import notify

pytestmark = pytest.mark.django_db(transaction=True)


@dataclass(slots=True)
class Attempts:
    """What was tried, with the real client, on a broker's socket; and what Celery was given."""

    connections: int = 0
    tasks: list[tuple[str, float]] = field(default_factory=list)


@pytest.fixture(autouse=True)
def notified(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the real thing: nothing is recorded instead of it."""
    monkeypatch.setattr(notify, "_broker", notify._Broker())
    notify._redis.cache_clear()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Attempts:
    made = Attempts()

    def counted(connect: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting(connection: Any) -> Any:
            made.connections += 1
            return connect(connection)

        return counting

    for kind in (redis.Connection, redis.UnixDomainSocketConnection):
        monkeypatch.setattr(kind, "_connect", counted(kind._connect))

    def send_task(name: str, expires: float, retry: bool) -> None:
        made.tasks.append((name, expires))

    monkeypatch.setattr(notify.current_app, "send_task", send_task)
    return made


@pytest.fixture(params=["no socket", "refused"])
def nobody(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> Iterator[None]:
    """The address of a broker that is away."""
    with socket.socket() as bound:  # it keeps the port, and does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        is_socket = request.param == "no socket"
        settings.REDIS_URL = (
            f"unix://{tmp_path}/nobody.sock" if is_socket else f"redis://127.0.0.1:{port}/0"
        )
        yield


def test_a_broker_that_is_away_is_tried_once_then_left_alone_for_a_moment(
    nobody: None, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(notify, "monotonic", lambda: now)
    notify.request_reconcile()
    assert attempts.connections == 1
    for _ in range(5):
        notify.request_reconcile()
        notify.publish_fleet_changed()
    assert attempts.connections == 1
    now += notify.QUIET_SECONDS
    notify.publish_fleet_changed()
    assert attempts.connections == 2
    assert attempts.tasks == []


def test_a_broker_that_is_back_is_told_again(
    nobody: None, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(notify, "monotonic", lambda: now)
    notify.request_reconcile()
    now += notify.QUIET_SECONDS
    monkeypatch.setattr(redis.Redis, "ping", lambda client: True)
    notify.request_reconcile()
    assert len(attempts.tasks) == 1


def test_a_broker_that_hangs_holds_nobody_up_for_long(settings: Any) -> None:
    options = notify._redis("redis://127.0.0.1:1/0").get_connection_kwargs()
    assert options["socket_timeout"] + options["socket_connect_timeout"] <= 1
    assert options["retry"].get_retries() == 0


def test_a_broker_that_is_away_is_logged_once(
    settings, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    settings.REDIS_URL = f"unix://{tmp_path}/nobody.sock"
    notify.publish_fleet_changed()
    notify.publish_fleet_changed()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "broker is away" in warnings[0].getMessage()


def test_a_wish_that_cannot_be_sent_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*args: object, **options: object) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(redis.Redis, "ping", lambda client: True)
    monkeypatch.setattr(notify.current_app, "send_task", away)
    notify.request_reconcile()
    assert "nobody there" in caplog.text


def test_a_wish_is_sent_when_the_transaction_is_committed_and_soon_void(
    monkeypatch: pytest.MonkeyPatch, attempts: Attempts
) -> None:
    monkeypatch.setattr(redis.Redis, "ping", lambda client: True)
    with transaction.atomic():
        notify.request_reconcile()
        assert attempts.tasks == []
    assert attempts.tasks == [("fleet.reconcile_fleet", 5.0)]
