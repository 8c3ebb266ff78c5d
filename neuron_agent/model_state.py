"""One model on this neuron: its phase, what is known of it, and the requests it is serving.

The supervisor and the device it is on change it, all on one event loop; everybody else reads.
It starts nothing itself and knows neither processes nor HTTP.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuron_agent.admission import Places, Verdict, retry_after_seconds
from neuron_agent.devices.channel import LoadModel, ModelReady, ModelReport, Output
from neuron_agent.errors import BadRequest, NeuronError, RateLimited, Unavailable
from neuron_agent.protocol import ErrorCode, LoadFailure, LoadProgress, LoadRequest, ModelPhase
from neuron_agent.sources.model_text import ModelText

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
SMOOTHING = 0.1
"""Weight of the latest request in the mean of how long requests take."""


class IllegalMove(Exception):
    """A bug: a phase was left for one that cannot follow it."""


class RunningRequest:
    """A request the model has admitted; `outputs` is where the device's words for it arrive.

    Requests that were admitted together share their queue: an output names its request.
    """

    def __init__(
        self,
        request_id: str,
        client_id: str,
        model: "ModelState",
        principal: str = "",
        outputs: asyncio.Queue[Output] | None = None,
    ) -> None:
        self.id = request_id
        self.client_id = client_id
        self.model = model
        self.principal = principal
        self.outputs: asyncio.Queue[Output] = asyncio.Queue() if outputs is None else outputs
        self.submitted_at: float | None = None
        """When the device was asked, on the monotonic clock."""
        self.is_cancelled_by_caller = False
        self.keeps_place = False
        """Whether its place is needed for another request once the device is done with it."""


class ModelState:
    """A model from the moment its load was asked for until it is gone."""

    def __init__(
        self,
        request: LoadRequest,
        max_in_flight: int,
        max_queue_depth: int,
        max_per_principal: int | None = None,
    ) -> None:
        self.request = request
        self.places = Places(max_in_flight, max_queue_depth, max_per_principal)
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
        self.mean_request_seconds: float | None = None
        """How long requests take, from their submission to their end; None before the first."""
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
            max_in_flight=self.places.max_in_flight,
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

    @property
    def context_tokens(self) -> int:
        """What prompt and answer of one request may have together; 0 until it is ready.

        Whatever the model could do: what the KV cache cannot hold would never be served.
        """
        return min(self.ready.context_tokens, self.ready.kv_tokens) if self.ready else 0

    def admit(self, request_id: str, client_id: str, principal: str = "") -> RunningRequest:
        """Give a request a place here or in the queue. Raises NeuronError, at once."""
        (request,) = self.admit_all([request_id], client_id, principal)
        return request

    def admit_all(
        self, request_ids: Sequence[str], client_id: str, principal: str = ""
    ) -> list[RunningRequest]:
        """Give requests that belong together their places, or none. Raises NeuronError, at once."""
        if self.phase is not ModelPhase.READY:
            raise self._not_serving()
        verdict = self.places.judge(principal, len(request_ids), self._num_held_by())
        if verdict is not Verdict.ADMITTED:
            raise self._refusal(verdict)
        outputs: asyncio.Queue[Output] = asyncio.Queue()
        admitted = [
            RunningRequest(request_id, client_id, self, principal, outputs)
            for request_id in request_ids
        ]
        self.requests.update({request.id: request for request in admitted})
        return admitted

    def num_places_for(self, principal: str) -> int:
        """Return how many more places a caller would get now."""
        held = self._num_held_by()
        num_left = self.places.share_of(principal, held) - held[principal]
        return max(0, min(num_left, self.places.total - len(self.requests)))

    def renew(self, request: RunningRequest, request_id: str) -> RunningRequest:
        """Return a new request in the place of one that has ended. Raises Unavailable."""
        if self.requests.pop(request.id, None) is None or self.is_gone:
            raise self._not_serving()
        self._learn_from(request)
        fresh = RunningRequest(request_id, request.client_id, self, request.principal)
        fresh.keeps_place = request.keeps_place
        self.requests[request_id] = fresh
        return fresh

    def release(self, request: RunningRequest) -> None:
        """Take the place back; releasing twice is harmless."""
        if self.requests.pop(request.id, None) is None:
            return
        self._learn_from(request)
        if not self.requests:
            self.announce()  # a drain waits for the last one

    def _learn_from(self, request: RunningRequest) -> None:
        """Note how long a request took; one that the device never saw took no time of it."""
        if request.submitted_at is None:
            return
        seconds = time.monotonic() - request.submitted_at
        mean = seconds if self.mean_request_seconds is None else self.mean_request_seconds
        self.mean_request_seconds = mean + SMOOTHING * (seconds - mean)

    def reject(self, reason: str) -> None:
        """Count a request that was turned away."""
        self.rejected[reason] += 1

    @property
    def retry_after_seconds(self) -> int:
        """When a place should be free, by how long requests have taken so far."""
        num_ahead = self.num_queued + 1
        mean = self.mean_request_seconds or 0.0
        return retry_after_seconds(mean, num_ahead, self.places.max_in_flight)

    @property
    def num_in_flight(self) -> int:
        return min(len(self.requests), self.places.max_in_flight)

    @property
    def num_queued(self) -> int:
        return len(self.requests) - self.num_in_flight

    def check_integrity(self) -> None:
        """Raise AssertionError if an idle model still counts somebody."""
        assert all(request.model is self for request in self.requests.values())
        assert self.num_in_flight + self.num_queued == len(self.requests)
        assert not (self.is_gone and self.requests)

    def _num_held_by(self) -> Counter[str]:
        return Counter(request.principal for request in self.requests.values())

    def _refusal(self, verdict: Verdict) -> NeuronError:
        self.reject(verdict)
        match verdict:
            case Verdict.NEVER:
                return BadRequest("more choices than are ever generated at once", param="n")
            case Verdict.OVER_SHARE:
                return RateLimited(
                    f"as many requests are running as one caller may have at {self.id}",
                    retry_after_seconds=self.retry_after_seconds,
                )
            case _:
                return Unavailable(
                    f"{self.id} is saturated",
                    code=ErrorCode.SATURATED,
                    retry_after_seconds=self.retry_after_seconds,
                )

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
