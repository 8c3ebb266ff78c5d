"""One model on this neuron: its phase, what is known of it, and the requests it is serving.

The supervisor and the device it is on change it, all on one event loop; everybody else reads.
It starts nothing itself and knows neither processes nor HTTP.
"""

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from neuron_agent.devices.channel import LoadModel, ModelReady, ModelReport, Output
from neuron_agent.errors import Unavailable
from neuron_agent.model_text import ModelText
from neuron_agent.protocol import ErrorCode, LoadFailure, LoadProgress, LoadRequest, ModelPhase

P = ModelPhase
TRANSITIONS: dict[ModelPhase, frozenset[ModelPhase]] = {
    P.LOADING: frozenset({P.WARMING, P.READY, P.RECOVERING, P.UNLOADING, P.FAILED}),
    P.WARMING: frozenset({P.READY, P.RECOVERING, P.UNLOADING, P.FAILED}),
    P.READY: frozenset({P.RECOVERING, P.DRAINING, P.UNLOADING, P.FAILED}),
    P.RECOVERING: frozenset({P.WARMING, P.READY, P.UNLOADING, P.FAILED}),
    P.DRAINING: frozenset({P.UNLOADING}),
    P.UNLOADING: frozenset(),
    P.FAILED: frozenset({P.UNLOADING}),
}
BECOMING_READY = frozenset({P.LOADING, P.WARMING, P.RECOVERING})
"""A load asked for in these phases waits for the one that is going on."""
LEAVING = frozenset({P.DRAINING, P.UNLOADING})


class IllegalMove(Exception):
    """A bug: a phase was left for one that cannot follow it."""


class RunningRequest:
    """A request the model has admitted; `outputs` is where the device's words for it arrive."""

    def __init__(self, request_id: str, client_id: str, model: "ModelState") -> None:
        self.id = request_id
        self.client_id = client_id
        self.model = model
        self.outputs: asyncio.Queue[Output] = asyncio.Queue()
        self.is_cancelled_by_caller = False


class ModelState:
    """A model from the moment its load was asked for until it is gone."""

    def __init__(self, request: LoadRequest, max_in_flight: int, max_queue_depth: int) -> None:
        self.request = request
        self.max_in_flight = max_in_flight
        self.max_queue_depth = max_queue_depth
        self.phase = ModelPhase.LOADING
        self.progress: LoadProgress | None = LoadProgress("resolving", 0.0)
        self.failure: LoadFailure | None = None
        self.folder: Path | None = None
        self.weight_bytes = 0
        self.text: ModelText | None = None
        self.device_index: int | None = None
        self.ready: ModelReady | None = None
        self.report: ModelReport | None = None
        self.num_interruptions = 0
        """How often a device process ended while this model was being loaded there."""
        self.created_at = time.time()
        self.drain_until = 0.0
        """While draining: when the requests that still run are ended, on the monotonic clock."""
        self.is_gone = False
        self.requests: dict[str, RunningRequest] = {}
        self.rejected: Counter[str] = Counter()
        self.prompt_tokens_total = 0
        self.completion_tokens_total = 0
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        return self.request.model_id

    def load_command(self) -> LoadModel:
        """Return what a device process is told to load."""
        assert self.folder is not None
        return LoadModel(
            model_id=self.id,
            folder=str(self.folder),
            dtype=self.request.dtype,
            quant=self.request.quant,
            max_context=self.request.max_context,
            max_in_flight=self.max_in_flight,
        )

    # --- phases ----------------------------------------------------------------------------------

    def move(self, phase: ModelPhase) -> None:
        """Change the phase. Raises IllegalMove."""
        if phase not in TRANSITIONS[self.phase]:
            raise IllegalMove(f"{self.id}: {self.phase} -> {phase}")
        self.phase = phase
        self.progress = LoadProgress("reading", 0.0) if phase is P.RECOVERING else None
        self.announce()

    def show(self, progress: LoadProgress) -> None:
        """Note how far a load is; the percentage of one load never falls."""
        shown = max(progress.percent, self.progress.percent if self.progress else 0.0)
        self.progress = replace(progress, percent=shown)
        if progress.stage == "warming" and self.phase in (P.LOADING, P.RECOVERING):
            self.phase = ModelPhase.WARMING  # the bar goes on, unlike in a move
        self.announce()

    def become_ready(self, ready: ModelReady) -> None:
        self.ready = ready
        self.num_interruptions = 0
        self.move(ModelPhase.READY)

    def fail(self, failure: LoadFailure) -> None:
        self.failure = failure
        self.move(ModelPhase.FAILED)

    def shorten_drain(self, until: float) -> None:
        """End a drain earlier; asked again with a later time it stays as it was."""
        if self.phase is P.DRAINING and until < self.drain_until:
            self.drain_until = until
            self.announce()

    def vanish(self) -> None:
        """The model is off its device and off the list."""
        self.is_gone = True
        self.announce()

    def announce(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self) -> None:
        """Return after the next change; look at the state before, not only after."""
        await self._changed.wait()

    # --- requests --------------------------------------------------------------------------------

    def admit(self, request_id: str, client_id: str) -> RunningRequest:
        """Give a request a place here or in the queue. Raises Unavailable, at once."""
        if self.phase is not ModelPhase.READY:
            raise self._not_serving()
        if len(self.requests) >= self.max_in_flight + self.max_queue_depth:
            self.rejected["saturated"] += 1
            raise Unavailable(f"{self.id} is saturated", code=ErrorCode.SATURATED)
        request = RunningRequest(request_id, client_id, self)
        self.requests[request_id] = request
        return request

    def release(self, request: RunningRequest) -> None:
        """Take the place back; releasing twice is harmless."""
        if self.requests.pop(request.id, None) is not None and not self.requests:
            self.announce()  # a drain waits for the last one

    @property
    def num_in_flight(self) -> int:
        return min(len(self.requests), self.max_in_flight)

    @property
    def num_queued(self) -> int:
        return len(self.requests) - self.num_in_flight

    def check_integrity(self) -> None:
        """Raise AssertionError if an idle model still counts somebody."""
        assert all(request.model is self for request in self.requests.values())
        assert self.num_in_flight + self.num_queued == len(self.requests)
        assert not (self.is_gone and self.requests)

    def _not_serving(self) -> Unavailable:
        match self.phase:
            case ModelPhase.LOADING | ModelPhase.WARMING:
                return Unavailable(
                    f"{self.id} is being loaded",
                    code=ErrorCode.MODEL_LOADING,
                    retry_after_seconds=2,
                )
            case ModelPhase.RECOVERING:
                # Not `device_fault`: this request was never on that device, and may wait.
                return Unavailable(
                    f"{self.id} is recovering from a device fault",
                    code=ErrorCode.MODEL_LOADING,
                    retry_after_seconds=2,
                )
            case _:
                return Unavailable(
                    f"{self.id} is {self.phase}",
                    code=ErrorCode.MODEL_NOT_LOADED,
                    retry_after_seconds=5,
                )
