"""Tells other processes that the fleet changed, or that a pass is wanted.

Both only make things sooner: gateways re-read the fleet and workers make their pass anyway. So a
broker that is away is logged, once until it is back, and never anybody's error.
"""

import logging
from functools import lru_cache

import redis
from celery import current_app
from django.conf import settings
from django.db import transaction

log = logging.getLogger(__name__)

FLEET_CHANNEL = "cortex:fleet"
RECONCILE_TASK = "fleet.reconcile_fleet"
_EXPIRES_SECONDS = 5.0
_TIMEOUT_SECONDS = 1.0

_silenced: set[str] = set()


def publish_fleet_changed() -> None:
    """Once the current transaction is committed, tell every gateway to look again."""
    transaction.on_commit(_publish)


def request_reconcile() -> None:
    """Once the current transaction is committed, ask a worker for a pass at once."""
    transaction.on_commit(_send_reconcile)


def _publish() -> None:
    try:
        _redis(settings.REDIS_URL).publish(FLEET_CHANNEL, b"changed")
    except redis.RedisError as error:
        _complain("publish", error)
    else:
        _silenced.discard("publish")


def _send_reconcile() -> None:
    try:
        current_app.send_task(RECONCILE_TASK, expires=_EXPIRES_SECONDS, retry=False)
    except Exception as error:  # kombu's transports raise errors of their own libraries
        _complain("send", error)
    else:
        _silenced.discard("send")


def _complain(what: str, error: Exception) -> None:
    level = logging.DEBUG if what in _silenced else logging.WARNING
    _silenced.add(what)
    log.log(level, "The broker is away, so changes spread by polling: %s", error)


@lru_cache(maxsize=1)
def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
    )
