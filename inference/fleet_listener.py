"""Listens on Redis for word that the fleet has changed. It does not know what has.

Whoever polls is right without it. A Redis that is away, silent or out of its mind is tried again
for as long as it takes.
"""

import asyncio
import logging
from collections.abc import Callable

import redis.asyncio

from fleet.services import FLEET_CHANNEL

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
QUIET_SECONDS = 10.0
"""So long without a message, Redis is asked whether it is still there; as long it has to answer."""


class FleetListener:
    """Belongs to the event loop."""

    def __init__(self, redis_url: str, on_news: Callable[[], None]) -> None:
        self._redis_url = redis_url
        self._on_news = on_news
        self._is_away = False

    async def run(self) -> None:
        while True:
            try:
                await self._listen()
            except Exception as error:  # whatever it is, the poll goes on alone
                level = logging.DEBUG if self._is_away else logging.WARNING
                log.log(level, "Redis is away; the fleet is followed by polling: %s", error)
                self._is_away = True
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        """Listen until Redis is away: a host that vanishes says nothing, so it is asked."""
        client = redis.asyncio.Redis.from_url(self._redis_url, socket_timeout=None)
        async with client, client.pubsub() as subscription:
            await subscription.subscribe(FLEET_CHANNEL)
            is_asked = False
            while True:
                message = await subscription.get_message(timeout=QUIET_SECONDS)
                if message is None:
                    if is_asked:
                        raise TimeoutError(f"no word from it in {2 * QUIET_SECONDS:.0f} s")
                    await subscription.ping()
                    is_asked = True
                    continue
                is_asked = self._is_away = False
                if message["type"] != "pong":
                    self._on_news()  # the first tells that we listen: what was said before is due
