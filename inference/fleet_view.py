"""This process's picture of the fleet: an immutable view, swapped by reference, kept fresh.

Reading it costs a dictionary look-up and never waits. Beside it stands what only this gateway
knows: what it has sent where, and which neurons just failed it. It decides nothing: which
placement a request gets is `dispatch`'s business.

The poll alone keeps it right; messages on Redis only make it sooner.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fleet.planner.actions import RefusalCode
from fleet.planner.phases import NeuronPhase
from fleet.selectors import ServedModel, ServedNeuron, ServedPlacement, ServingView
from inference.dispatch.breaker import CLOSED, Breaker
from inference.dispatch.choose import Candidate
from inference.dispatch.failover import TransportFailure
from inference.fleet_listener import FleetListener
from inference.fleet_port import FleetPort

log = logging.getLogger(__name__)

READ_GAP_SECONDS = 0.1
"""At least, between two reads of the fleet, however many ask for one."""

EMPTY_VIEW = ServingView(
    taken_at=datetime.min.replace(tzinfo=UTC),
    models={},
    aliases={},
    placements=(),
    neurons={},
    verdicts={},
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A view, and what is looked up in it by model and by name."""

    view: ServingView = EMPTY_VIEW
    placements_by_model: dict[str, tuple[ServedPlacement, ...]] = field(default_factory=dict)
    neurons_by_name: dict[str, ServedNeuron] = field(default_factory=dict)
    load_of_others: dict[int, int] = field(default_factory=dict)
    """What each placement was observed to have beyond what this gateway had sent it then."""


class FleetView:
    """Belongs to the event loop. `start` begins to keep it fresh."""

    def __init__(
        self,
        port: FleetPort,
        poll_seconds: float,
        urgent_poll_seconds: float,
        max_wait_seconds: float,
    ) -> None:
        self._port = port
        self._poll_seconds = poll_seconds
        self._urgent_poll_seconds = urgent_poll_seconds
        self._max_wait = timedelta(seconds=max_wait_seconds)
        self._picture = Picture()
        self._in_flight: Counter[int] = Counter()
        self._num_urgent = 0
        self._neuron_breakers: dict[int, Breaker] = {}
        self._slow_breakers: dict[int, Breaker] = {}
        self._swapped = asyncio.Event()
        self._wanted = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_blind = False

    # --- what a request reads ------------------------------------------------------------------

    @property
    def view(self) -> ServingView:
        return self._picture.view

    def find_model(self, name: str) -> ServedModel | None:
        """Return the enabled model behind a name or an alias."""
        view = self._picture.view
        model = view.models.get(name) or view.models.get(view.aliases.get(name, ""))
        return model if model is not None and model.enabled else None

    def placements_of(self, model_id: str) -> tuple[ServedPlacement, ...]:
        return self._picture.placements_by_model.get(model_id, ())

    def placement(self, model_id: str, placement_id: int) -> ServedPlacement:
        return next(p for p in self.placements_of(model_id) if p.id == placement_id)

    def candidates(self, model_id: str) -> Iterator[Candidate]:
        """Yield the model's placements as dispatch wants to know them."""
        now = time.monotonic()
        for placement in self.placements_of(model_id):
            neuron = self.view.neurons.get(placement.neuron_id)
            yield Candidate(
                placement_id=placement.id,
                phase=placement.phase,
                desired_present=placement.desired_present,
                servable=placement.servable,
                neuron_dispatchable=neuron is not None and neuron.dispatchable,
                breaker_closed=self._is_closed(placement, now),
                must_yield=self._must_yield(placement),
                load=self._in_flight[placement.id]
                + self._picture.load_of_others.get(placement.id, 0),
            )

    def is_serving(self, neuron_name: str) -> bool:
        """Whether requests may be sent to a neuron."""
        neuron = self._neuron(neuron_name)
        return neuron is not None and neuron.dispatchable and self.is_reachable(neuron_name)

    def is_reachable(self, neuron_name: str) -> bool:
        """Whether a neuron answers, as far as is known: one never asked is not away."""
        neuron = self._neuron(neuron_name)
        return (
            neuron is not None
            and neuron.phase in (NeuronPhase.HEALTHY, NeuronPhase.UNKNOWN)
            and self._breaker(neuron.id).is_closed(time.monotonic())
        )

    def _must_yield(self, placement: ServedPlacement) -> bool:
        """Whether others have waited long enough for this placement's memory.

        Then new requests for it wait too, so that it can become idle and nobody starves.
        """
        neuron = self.view.neurons.get(placement.neuron_id)
        if neuron is None or not self.view.verdicts:
            return False
        deadline = datetime.now(UTC) - self._max_wait
        return any(
            verdict.kind == "hold"
            and verdict.since is not None
            and verdict.since < deadline
            and model_id != placement.model_id
            and any(
                refusal.code is RefusalCode.BUSY_VICTIMS and refusal.neuron == neuron.name
                for refusal in verdict.refusals
            )
            for model_id, verdict in self.view.verdicts.items()
        )

    # --- what a request tells ------------------------------------------------------------------

    @contextlib.contextmanager
    def sending_to(self, placement: ServedPlacement) -> Iterator[None]:
        """Count a request as in flight at a placement."""
        self._in_flight[placement.id] += 1
        try:
            yield
        finally:
            self._in_flight[placement.id] -= 1
            if not self._in_flight[placement.id]:
                del self._in_flight[placement.id]

    def note_answer(self, placement: ServedPlacement) -> None:
        """The neuron answered: whatever was held against it is forgotten."""
        self._neuron_breakers.pop(placement.neuron_id, None)
        self._slow_breakers.pop(placement.id, None)

    def note_failure(self, placement: ServedPlacement, failure: TransportFailure) -> bool:
        """Return whether it is news of the neuron: others sent before may have failed already."""
        now = time.monotonic()
        is_news = self._breaker(placement.neuron_id).is_closed(now)
        if failure is TransportFailure.SILENT:
            slow = self._slow_breakers.get(placement.id, CLOSED)
            self._slow_breakers[placement.id] = slow.after_failure(now)
        else:
            is_certain = failure is TransportFailure.REFUSED
            self._neuron_breakers[placement.neuron_id] = self._breaker(
                placement.neuron_id
            ).after_failure(now, is_certain=is_certain)
        return is_news

    # --- waiting for a change ------------------------------------------------------------------

    async def wait_for_change(self, timeout_seconds: float) -> None:
        """Return when the view is swapped, or after that time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._swapped.wait()

    @contextlib.contextmanager
    def urgently(self) -> Iterator[None]:
        """Poll more often while somebody waits for a change."""
        self._num_urgent += 1
        self.refresh_soon()
        try:
            yield
        finally:
            self._num_urgent -= 1

    def refresh_soon(self) -> None:
        self._wanted.set()

    # --- keeping it fresh ----------------------------------------------------------------------

    async def start(self, redis_url: str | None) -> None:
        """Read the fleet once, then keep reading. A database that is away is waited for."""
        await self._refresh()
        self._spawn(self._keep_fresh())
        if redis_url is not None:
            self._spawn(FleetListener(redis_url, self.refresh_soon).run())

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def swap(self, view: ServingView) -> None:
        """Make `view` the picture, and wake those who wait for a change."""
        by_model: dict[str, tuple[ServedPlacement, ...]] = {}
        for placement in view.placements:
            by_model[placement.model_id] = (*by_model.get(placement.model_id, ()), placement)
        self._forget_breakers_of_recovered(view)
        self._picture = Picture(
            view,
            by_model,
            {neuron.name: neuron for neuron in view.neurons.values()},
            {
                placement.id: max(
                    0, placement.in_flight + placement.queued - self._in_flight[placement.id]
                )
                for placement in view.placements
            },
        )
        self._swapped.set()
        self._swapped = asyncio.Event()

    def check_integrity(self) -> None:
        """Raise AssertionError if capacity was not given back. For when nothing runs."""
        assert not +self._in_flight, f"in flight: {dict(self._in_flight)}"
        assert self._num_urgent == 0, f"{self._num_urgent} still wait"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(work))

    def _forget_breakers_of_recovered(self, view: ServingView) -> None:
        """Whoever polls neurons found one well that was not: that is newer than our failures."""
        for neuron in view.neurons.values():
            before = self.view.neurons.get(neuron.id)
            was_well = before is not None and before.phase is NeuronPhase.HEALTHY
            if neuron.phase is NeuronPhase.HEALTHY and not was_well:
                self._neuron_breakers.pop(neuron.id, None)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(READ_GAP_SECONDS)
            seconds = self._urgent_poll_seconds if self._num_urgent else self._poll_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wanted.wait()
            self._wanted.clear()
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            self.swap(await self._port.read_view())
        except Exception as error:  # the last good view serves on until the database is back
            level = logging.DEBUG if self._is_blind else logging.WARNING
            log.log(level, "The fleet cannot be read; serving by the last view: %s", error)
            self._is_blind = True
        else:
            self._is_blind = False

    def _neuron(self, name: str) -> ServedNeuron | None:
        return self._picture.neurons_by_name.get(name)

    def _breaker(self, neuron_id: int) -> Breaker:
        return self._neuron_breakers.get(neuron_id, CLOSED)

    def _is_closed(self, placement: ServedPlacement, now: float) -> bool:
        slow = self._slow_breakers.get(placement.id, CLOSED)
        return self._breaker(placement.neuron_id).is_closed(now) and slow.is_closed(now)
