"""Telling others: after the commit, and never anybody's error."""

import logging

import pytest
from django.db import transaction

from fleet import notify

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def notified() -> None:
    """These tests are about the real thing: nothing is recorded instead of it."""
    notify._silenced.clear()
    notify._redis.cache_clear()


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

    monkeypatch.setattr(notify.current_app, "send_task", away)
    notify.request_reconcile()
    assert "nobody there" in caplog.text


def test_a_wish_is_sent_when_the_transaction_is_committed_and_soon_void(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[tuple[str, float]] = []
    monkeypatch.setattr(
        notify.current_app,
        "send_task",
        lambda name, expires, retry: sent.append((name, expires)),
    )
    with transaction.atomic():
        notify.request_reconcile()
        assert sent == []
    assert sent == [("fleet.reconcile_fleet", 5.0)]
