"""Waiting for a model that is not loaded: one wish for it, however many wait, and word to each.

It does not load anything and does not choose where: it writes that a model is waited for, watches
the fleet view until a placement can be picked, and gives the place back when the waiter leaves.

Demand rows have one owner, the task that compares who waits with what was told. So a wish and its
withdrawal cannot overtake each other.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from django.utils import timezone

from fleet.planner.backoff import is_only_cooling_down
from fleet.planner.phases import ARRIVING
from fleet.selectors import ServedModel, ServedPlacement, Verdict
from inference.dispatch.admission import Limits, Reject, admit_waiter
from inference.event_stream import Where
from inference.fleet_port import FleetPort
from inference.fleet_view import FleetView
from inference.wire.errors import (
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    CortexError,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    NeuronUnreachable,
    NoFeasibleNeuron,
    Saturated,
    without_paths,
)

log = logging.getLogger(__name__)

RENEW_SECONDS = 2.0
DEFAULT_RETRY_SECONDS = 10
STOP_SECONDS = 2.0
LOOK_SECONDS = 1.0
"""Time alone makes a placement eligible: a breaker closes, one that was gone may be asked again."""

Pick = Callable[[], ServedPlacement | None]
Show = Callable[[Where], None]


@dataclass(eq=False, frozen=True, slots=True)
class _Waiter:
    body_bytes: int


class ColdLoads:
    """Who waits for which model at this gateway. Belongs to the event loop."""

    def __init__(self, fleet: FleetView, port: FleetPort, limits: Limits) -> None:
        self._fleet = fleet
        self._port = port
        self._limits = limits
        # In the order they came: the value of the inner dictionary means nothing.
        self._waiters: dict[str, dict[_Waiter, None]] = {}
        self._told: set[str] = set()
        """Models this gateway has a demand row for, as far as it knows."""
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._is_failing = False
        self._is_stopping = False

    @property
    def num_waiting(self) -> int:
        return sum(len(waiters) for waiters in self._waiters.values())

    async def wait(
        self, model_id: str, body_bytes: int, pick: Pick, show: Show, deadline: float
    ) -> ServedPlacement:
        """Return a placement once `pick` finds one. `deadline` is of the monotonic clock.

        Raises Saturated, what `check_hope` raises and, at the deadline, ModelLoading.
        """
        with self._place_for(model_id, body_bytes) as waiter, self._fleet.urgently():
            show(lambda: self._progress(model_id, waiter))
            while (placement := pick()) is None:
                self.check_hope(model_id)
                now = time.monotonic()
                if now >= deadline:
                    raise self._still_loading(model_id, waiter)
                await self._fleet.wait_for_change(min(deadline - now, LOOK_SECONDS))
            return placement

    def check_hope(self, model_id: str) -> None:
        """Raise ModelNotFound, NoFeasibleNeuron, ModelLoadFailed or NeuronUnreachable, if so."""
        model = self._fleet.find_model(model_id)
        if model is None:
            raise ModelNotFound(model_id)
        error = why_hopeless(
            model,
            self._fleet.view.verdicts.get(model_id),
            is_arriving=self._arriving(model_id) is not None,
            is_reachable={name: self._fleet.is_reachable(name) for name in model.feasible_on},
        )
        if error is not None:
            raise error

    # --- the wish ------------------------------------------------------------------------------

    def start(self) -> None:
        self._keeper = asyncio.get_running_loop().create_task(self._keep_demand())

    async def stop(self) -> None:
        """Withdraw what was wished for: whoever waits is leaving."""
        self._is_stopping = True
        self._waiters.clear()
        self._changed.set()
        if self._keeper is not None:
            # Not cancelled in mid-call: the thread would write on, after the withdrawal.
            await asyncio.wait({self._keeper}, timeout=STOP_SECONDS)
            self._keeper.cancel()

    def check_integrity(self) -> None:
        """Raise AssertionError if a place was not given back. For when nothing runs."""
        assert not self._waiters, f"still waiting: {self._counts()}"

    @contextlib.contextmanager
    def _place_for(self, model_id: str, body_bytes: int) -> Iterator[_Waiter]:
        """Take a place among those who wait, and give it back. Raises Saturated."""
        held_bytes = sum(w.body_bytes for waiters in self._waiters.values() for w in waiters)
        decision = admit_waiter(self.num_waiting, held_bytes, body_bytes, self._limits)
        if isinstance(decision, Reject):
            raise Saturated(decision.reason, retry_after_seconds=decision.retry_after_seconds)
        waiter = _Waiter(body_bytes)
        self._waiters.setdefault(model_id, {})[waiter] = None
        self._changed.set()
        try:
            yield waiter
        finally:
            others = self._waiters.get(model_id, {})
            others.pop(waiter, None)
            if not others:
                self._waiters.pop(model_id, None)
                self._changed.set()

    async def _keep_demand(self) -> None:
        renew_at = time.monotonic() + RENEW_SECONDS
        while not self._is_stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, renew_at - time.monotonic())):
                    await self._changed.wait()
            self._changed.clear()
            is_renewal_due = time.monotonic() >= renew_at
            if is_renewal_due:
                renew_at = time.monotonic() + RENEW_SECONDS
            await self._tell_demand(is_renewal_due)

    async def _tell_demand(self, is_renewal_due: bool) -> None:
        """Make the rows say who waits. What fails is told again at the next renewal."""
        try:
            for model_id in self._told - self._waiters.keys():
                await self._port.withdraw_demand(model_id)
                self._told.discard(model_id)
            for model_id in self._waiters.keys() - self._told:
                await self._port.request_placement(model_id, self._counts().get(model_id, 1))
                self._told.add(model_id)
            if is_renewal_due and self._told:
                await self._port.renew_demand(self._counts())
        except Exception as error:  # the database may be back at the next renewal
            level = logging.DEBUG if self._is_failing else logging.WARNING
            log.log(level, "Who waits for a model cannot be written: %s", error)
            self._is_failing = True
        else:
            self._is_failing = False

    def _counts(self) -> dict[str, int]:
        return {model_id: len(waiters) for model_id, waiters in self._waiters.items()}

    # --- what is known of the load -------------------------------------------------------------

    def _still_loading(self, model_id: str, waiter: _Waiter) -> ModelLoading:
        progress = self._progress(model_id, waiter)
        eta_seconds = progress.get("eta_seconds", DEFAULT_RETRY_SECONDS)
        assert isinstance(eta_seconds, int)
        return ModelLoading(
            f"{model_id} is still being loaded.",
            retry_after_seconds=min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, eta_seconds)),
            extra={"loading": progress},
        )

    def _progress(self, model_id: str, waiter: _Waiter) -> dict[str, object]:
        """Say how far the load is; what is not known is left out."""
        model = self._fleet.find_model(model_id)
        placement = self._arriving(model_id)
        waiters = list(self._waiters.get(model_id, {}))
        position = 1 + waiters.index(waiter) if waiter in waiters else 1
        if model is None or placement is None:
            return {"model": model_id, "stage": "queued", "percent": 0.0, "position": position}
        waited_seconds = (timezone.now() - placement.requested_at).total_seconds()
        progress: dict[str, object] = {
            "model": model_id,
            "stage": placement.stage or str(placement.phase),
            "percent": round(placement.percent, 1),
            "position": position,
        }
        eta_seconds = eta_of(model.load_seconds, waited_seconds)
        return progress if eta_seconds is None else {**progress, "eta_seconds": eta_seconds}

    def _arriving(self, model_id: str) -> ServedPlacement | None:
        """The placement that is furthest on its way, on a neuron that answers."""
        neurons = self._fleet.view.neurons
        arriving = [
            placement
            for placement in self._fleet.placements_of(model_id)
            if placement.phase in ARRIVING
            and placement.neuron_id in neurons
            and self._fleet.is_reachable(neurons[placement.neuron_id].name)
        ]
        return max(arriving, key=lambda placement: placement.percent, default=None)


def why_hopeless(
    model: ServedModel,
    verdict: Verdict | None,
    *,
    is_arriving: bool,
    is_reachable: Mapping[str, bool],
) -> CortexError | None:
    """Return why waiting for a model is in vain, None if it may help.

    `is_reachable` has each neuron the model could run on.
    """
    if is_arriving:
        return None
    if is_reachable and not any(is_reachable.values()):
        names = ", ".join(is_reachable)
        return NeuronUnreachable(
            f"{model.model_id} runs on {names} only, and that cannot be reached.",
            retry_after_seconds=MIN_RETRY_SECONDS,
        )
    if verdict is None:
        return None
    if model.failure is not None and is_only_cooling_down(verdict.refusals):
        return ModelLoadFailed(
            f"{model.model_id} could not be loaded on {model.failure.neuron}: "
            f"{without_paths(model.failure.error)}",
            retry_after_seconds=DEFAULT_RETRY_SECONDS,
            extra={"cause": model.failure.error_code},
        )
    if verdict.kind == "refuse":
        return NoFeasibleNeuron(
            f"No neuron can run {model.model_id}.",
            retry_after_seconds=60,
            extra={"reasons": _reasons(verdict)},
        )
    return None


def eta_of(load_seconds: float | None, waited_seconds: float) -> int | None:
    """Return the whole seconds left of a load by earlier ones; None rather than a guess."""
    if load_seconds is None or waited_seconds >= load_seconds:
        return None
    return max(1, round(load_seconds - waited_seconds))


def _reasons(verdict: Verdict) -> list[dict[str, str]]:
    return [
        {
            "neuron": refusal.neuron,
            "code": refusal.code,
            "detail": without_paths(refusal.detail),
        }
        for refusal in verdict.refusals
    ]
