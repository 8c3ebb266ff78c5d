"""The gateway's only way to the database: each call runs in a thread of the gateway's own pool.

Not Django's shared thread: a slow query of an admin page must not hold up a request. It decides
nothing and keeps nothing.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Protocol, TypeVar

from django.db import close_old_connections
from django.utils import timezone

from fleet import selectors as fleet_selectors
from fleet import services as fleet_services
from fleet.selectors import ServingView
from inference import services
from inference.models import RequestRecord

NUM_THREADS = 4
DEMAND_SECONDS = 10.0
"""How long a wish for a model outlives a gateway that died."""

_Result = TypeVar("_Result")


class FleetPort(Protocol):
    """What a gateway reads from and tells the control plane. A test replaces it by a recorder."""

    async def read_view(self) -> ServingView: ...

    async def request_placement(self, model_id: str, num_waiting: int) -> None: ...

    async def renew_demand(self, num_waiting_by_model: Mapping[str, int]) -> None: ...

    async def withdraw_demand(self, model_id: str) -> None: ...

    async def report_unreachable(self, neuron_id: int, error: str) -> None: ...

    async def store_records(self, records: Sequence[RequestRecord]) -> None: ...

    async def note_used(self, last_used_by_placement: Mapping[int, datetime]) -> None: ...


class DatabaseFleetPort:
    """The real one. `source` names this gateway in the rows it writes."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="gateway-database")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def read_view(self) -> ServingView:
        return await self._run(lambda: fleet_selectors.serving_view(timezone.now()))

    async def request_placement(self, model_id: str, num_waiting: int) -> None:
        await self._run(
            lambda: fleet_services.request_placement(
                model_id,
                self._source,
                num_waiting,
                timezone.now(),
                lifetime_seconds=DEMAND_SECONDS,
            )
        )

    async def renew_demand(self, num_waiting_by_model: Mapping[str, int]) -> None:
        await self._run(
            lambda: fleet_services.renew_demand(self._source, num_waiting_by_model, timezone.now())
        )

    async def withdraw_demand(self, model_id: str) -> None:
        await self._run(lambda: fleet_services.withdraw_demand(model_id, self._source))

    async def report_unreachable(self, neuron_id: int, error: str) -> None:
        await self._run(lambda: fleet_services.report_unreachable(neuron_id, error, timezone.now()))

    async def store_records(self, records: Sequence[RequestRecord]) -> None:
        await self._run(lambda: services.store_records(records))

    async def note_used(self, last_used_by_placement: Mapping[int, datetime]) -> None:
        await self._run(lambda: fleet_services.note_used(last_used_by_placement))

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, _with_fresh_connection, work
        )


def _with_fresh_connection(work: Callable[[], _Result]) -> _Result:
    """Outside of Django's requests nobody else closes what has aged or broken."""
    close_old_connections()
    try:
        return work()
    finally:
        close_old_connections()
