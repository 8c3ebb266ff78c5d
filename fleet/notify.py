"""Tells other processes that the fleet changed, or that a pass is wanted.

Both only make things sooner: gateways re-read the fleet and workers make their pass anyway. So a
broker that is away is logged, once until it is back, left alone for a moment, and never anybody's
error.
"""

import logging
from collections.abc import Callable
from functools import lru_cache
from time import monotonic

import redis
from celery import current_app
from django.conf import settings
from django.db import transaction
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)

FLEET_CHANNEL = "cortex:fleet"
RECONCILE_TASK = "fleet.reconcile_fleet"
QUIET_SECONDS = 2.0
"""After a failure the broker is not called for so long: each call could take all its time."""
_EXPIRES_SECONDS = 5.0
_TIMEOUT_SECONDS = 0.5
"""To connect, and again for the answer: nobody is held up for more than a second."""


class _Broker:
    """Whether the broker is there, as far as this process knows."""

    def __init__(self) -> None:
        self._quiet_until = 0.0
        self._is_away = False

    def call(self, call: Callable[[], object]) -> None:
        """Make a call unless the last one failed just now. Threads may race: one call too many."""
        if monotonic() < self._quiet_until:
            return
        try:
            call()
        except Exception as error:  # kombu's transports raise errors of their own libraries
            self._quiet_until = monotonic() + QUIET_SECONDS
            level = logging.DEBUG if self._is_away else logging.WARNING
            self._is_away = True
            log.log(level, "The broker is away, so changes spread by polling: %s", error)
        else:
            self._is_away = False


_broker = _Broker()


def publish_fleet_changed() -> None:
    """Once the current transaction is committed, tell every gateway to look again."""
    transaction.on_commit(_publish)


def request_reconcile() -> None:
    """Once the current transaction is committed, ask a worker for a pass at once."""
    transaction.on_commit(_send_reconcile)


def _publish() -> None:
    _broker.call(lambda: _redis(settings.REDIS_URL).publish(FLEET_CHANNEL, b"changed"))


def _send_reconcile() -> None:
    _broker.call(_send)


def _send() -> None:
    # Celery itself would try a broker that is away for many seconds.
    _redis(settings.REDIS_URL).ping()
    current_app.send_task(RECONCILE_TASK, expires=_EXPIRES_SECONDS, retry=False)


@lru_cache(maxsize=1)
def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_SECONDS,
        socket_connect_timeout=_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
