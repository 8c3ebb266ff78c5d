"""Request records on their way to the database: a bounded queue in memory, one insert a second.

A request hands over its facts and is done with: counting and recording them waits for a moment of
its own, and a database that is slow or away never holds one up.
What was handed over is written, also at shutdown, as long as the database comes back in time and
the queue has room. A record that the database refuses for what it says is dropped alone: it must
not stand in the way of all others. What had to be dropped is counted. It knows nothing of how
requests go.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import islice

from django.db import DataError, IntegrityError

from inference import metrics
from inference.fleet_port import FleetPort
from inference.models import RequestRecord
from inference.request_facts import RequestFacts

log = logging.getLogger(__name__)

MAX_QUEUED = 100_000
MAX_BATCH = 5_000
TAKE_IN_SECONDS = 0.002
"""Until then nothing is done for a request that has ended: its client may ask the next at once."""
STOP_SECONDS = 2.0
RETRY_SECONDS = 0.2
CONTENT_ERRORS = (DataError, IntegrityError, OverflowError, ValueError)
"""Trying again does not help: the database is there and does not take this."""


class Recorder:
    """Belongs to the event loop."""

    def __init__(self, port: FleetPort, flush_seconds: float) -> None:
        self._port = port
        self._flush_seconds = flush_seconds
        self._ended: list[RequestFacts] = []
        """Not counted and not recorded yet."""
        self._queue: deque[RequestRecord] = deque()
        self._used: dict[int, datetime] = {}
        """Last use of placements, not told yet."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_failing = False
        self._complained: set[str] = set()

    def add(self, facts: RequestFacts) -> None:
        """Take over what is known of a request that has ended. Never waits and never raises."""
        if not self._ended:
            asyncio.get_running_loop().call_later(TAKE_IN_SECONDS, self._take_in)
        self._ended.append(facts)

    def _take_in(self) -> None:
        ended, self._ended = self._ended, []
        for facts in ended:
            try:
                self._record(facts.record())
            except Exception as error:  # a bug of ours, and no reason to lose the others
                metrics.count_lost_records(1)
                self._complain("A request could not be recorded", error)

    def _record(self, record: RequestRecord) -> None:
        if len(self._queue) < MAX_QUEUED:
            self._queue.append(record)
        else:
            metrics.count_lost_records(1)
        try:
            metrics.observe(record)
        except Exception as error:  # what cannot be counted must not end a request
            self._complain("A request could not be counted", error)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what is left; give up after STOP_SECONDS and say so."""
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                if self._task is not None:
                    await self._task
                while not await self.flush() or self._ended:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(RETRY_SECONDS)
        self._take_in()
        if self._queue:
            metrics.count_lost_records(len(self._queue))
            log.error("%d request records were lost: no database", len(self._queue))

    async def flush(self) -> bool:
        """Write what was handed over until now; return whether all of it was written."""
        self._take_in()
        for _ in range(-(-len(self._queue) // MAX_BATCH)):
            if not await self._write_batch():
                return False
        await self._tell_used()
        return True

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._flush_seconds):
                    await self._stopping.wait()
            if not self._stopping.is_set():
                await self.flush()

    async def _write_batch(self) -> bool:
        batch = list(islice(self._queue, MAX_BATCH))
        try:
            try:
                await self._port.store_records(batch)
                self._forget(batch)
            except CONTENT_ERRORS:
                await self._write_one_by_one(batch)
        except Exception as error:  # kept and tried again: the database may come back
            level = logging.DEBUG if self._is_failing else logging.WARNING
            log.log(level, "Request records wait for the database: %s", error)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    async def _write_one_by_one(self, batch: Sequence[RequestRecord]) -> None:
        """Write all but what the database refuses. Raises if it is away."""
        for record in batch:
            try:
                await self._port.store_records([record])
            except CONTENT_ERRORS as error:
                metrics.count_lost_records(1)
                self._complain("The database refused a request record; it is dropped", error)
            self._forget([record])

    def _forget(self, batch: Sequence[RequestRecord]) -> None:
        """Take the oldest records off the queue: they are dealt with."""
        for record in batch:
            self._queue.popleft()
            self._note_used(record)

    def _complain(self, what: str, error: Exception) -> None:
        level = logging.DEBUG if what in self._complained else logging.ERROR
        self._complained.add(what)
        log.log(level, "%s: %s", what, error)

    def _note_used(self, record: RequestRecord) -> None:
        if record.placement is not None:
            ended_at = record.at + timedelta(seconds=record.latency_seconds)
            last = self._used.get(record.placement, ended_at)
            self._used[record.placement] = max(last, ended_at)

    async def _tell_used(self) -> None:
        if not self._used:
            return
        used, self._used = self._used, {}
        try:
            await self._port.note_used(used)
        except Exception as error:  # the next use says it again
            log.warning("The last use of placements could not be written: %s", error)
