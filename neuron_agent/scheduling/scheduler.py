"""Decides, step by step, which tokens of which sequences are computed together.

Continuous batching with chunked prefill: a step takes one token of every decoding sequence and
fills up with prompt tokens, up to a budget, so that a long prompt never stalls the others.
Admission is first come, first served: nobody overtakes, so nobody starves.

A running sequence holds KV tokens for what it has and some more to come. When they run out, the
youngest sequence is preempted: it goes back to the head of the queue and is computed again later,
with the tokens it already gave out. The oldest always gets on, so everything ends.

It knows no tensor, no model and no clock. Between `schedule` and `update` nothing changes but
who is admitted, so a step that failed can simply be scheduled again.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from neuron_agent.scheduling.batch import Batch, Chunk
from neuron_agent.scheduling.request import FinishReason, Request, RequestStatus
from neuron_agent.scheduling.slots import IntegrityError, SlotPool


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    step_tokens: int = 256
    """Prompt tokens computed in one step."""
    reserve_tokens: int = 1024
    """How far ahead of its length a running sequence holds KV tokens."""
    whole_prompts: bool = False
    """Never cut a prompt: some caches cannot continue one. A long prompt then has its own step."""


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step did for one request."""

    request: Request
    is_sampled: bool
    token_id: int | None
    """None in prefill, and for a stop token."""


class Scheduler:
    def __init__(self, slots: SlotPool, limits: SchedulerLimits | None = None) -> None:
        self._slots = slots
        self._limits = limits or SchedulerLimits()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # oldest first
        self._freed_slots: list[int] = []
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def kv_used_ratio(self) -> float:
        return self._slots.reserved_tokens / self._slots.capacity_tokens

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError if it could never be held by the cache."""
        if request.most_tokens > self._slots.capacity_tokens:
            raise ValueError(f"{request.request_id} needs {request.most_tokens} KV tokens")
        if not request.prompt_ids or request.max_tokens < 1:
            raise ValueError(f"{request.request_id} has no prompt or asks for no token")
        self._waiting.append(request)

    def schedule(self, now: float) -> Batch | None:
        """Return what the next step computes, or None if there is nothing to do."""
        self._secure_reservations()
        self._admit(now)
        chunks = (*self._decode_chunks(), *self._prefill_chunks())
        return Batch(chunks) if chunks else None

    def update(self, batch: Batch, tokens: Mapping[str, int], now: float) -> tuple[Advance, ...]:
        """Record a computed batch and the token each of its sampled chunks gave.

        A request that ended meanwhile, or has no token in `tokens` though it was sampled, is
        left as it is.
        """
        running = {request.request_id: request for request in self._running}
        advances = []
        for chunk in batch.chunks:
            request = running.get(chunk.request_id)
            if request is None or (chunk.is_sampled and chunk.request_id not in tokens):
                continue
            request.num_computed = chunk.end
            token_id = None
            if chunk.is_sampled:
                token_id = self._take_token(request, tokens[chunk.request_id], now)
            advances.append(Advance(request, chunk.is_sampled, token_id))
        return tuple(advances)

    def cancel(self, request_id: str) -> Request | None:
        """Take a request out of queue or batch at once; None if it is not there."""
        return self.finish(request_id, FinishReason.CANCELLED)

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        """End a request for a reason of its own; None if it is not there."""
        for request in (*self._running, *self._waiting):
            if request.request_id == request_id:
                self._end(request, reason)
                return request
        return None

    def youngest_of(self, batch: Batch) -> Request | None:
        """Return the last admitted request of a batch, the one to give up if it cannot be run."""
        in_batch = {chunk.request_id for chunk in batch.chunks}
        return next((r for r in reversed(self._running) if r.request_id in in_batch), None)

    def take_freed_slots(self) -> tuple[int, ...]:
        """Return the slots given back since the last call: their cache contents can go."""
        freed = tuple(self._freed_slots)
        self._freed_slots.clear()
        return freed

    def check_integrity(self) -> None:
        """Raise IntegrityError unless exactly the running requests hold slots."""
        self._slots.check_integrity()
        if {request.request_id for request in self._running} != self._slots.holders:
            raise IntegrityError("slots are held by others than the running requests")
        if any(request.status is not RequestStatus.RUNNING for request in self._running):
            raise IntegrityError("a request in the batch is not running")
        if any(request.status is not RequestStatus.WAITING for request in self._waiting):
            raise IntegrityError("a request in the queue is not waiting")

    # --- admission and reservations ------------------------------------------------------------

    def _wanted_tokens(self, request: Request) -> int:
        return min(request.num_known + self._limits.reserve_tokens, request.most_tokens)

    def _admit(self, now: float) -> None:
        while self._waiting:
            request = self._waiting[0]
            slot = self._slots.allocate(request.request_id, self._wanted_tokens(request))
            if slot is None:
                return
            self._waiting.popleft()
            request.move_to(RequestStatus.RUNNING)
            request.slot = slot
            if request.admitted_at is None:
                request.admitted_at = now
            self._running.append(request)

    def _secure_reservations(self) -> None:
        """Let every running sequence hold the tokens of its next step, oldest first."""
        for request in tuple(self._running):
            while request.status is RequestStatus.RUNNING and not self._is_secured(request):
                self._preempt(self._running[-1])

    def _is_secured(self, request: Request) -> bool:
        if self._slots.held_tokens(request.request_id) >= request.num_known:
            return True
        return self._slots.grow(request.request_id, self._wanted_tokens(request))

    def _preempt(self, request: Request) -> None:
        self._leave_batch(request)
        request.move_to(RequestStatus.WAITING)
        request.num_computed = 0
        self._waiting.appendleft(request)
        self.num_preemptions += 1

    # --- what a step computes ------------------------------------------------------------------

    def _decode_chunks(self) -> list[Chunk]:
        return [self._chunk(request, 1) for request in self._running if request.is_decoding]

    def _prefill_chunks(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        budget = self._limits.step_tokens
        for request in self._running:
            if request.is_decoding:
                continue
            num_tokens = self._prefill_tokens(request, budget)
            if num_tokens == 0:
                break
            chunks.append(self._chunk(request, num_tokens))
            budget = max(0, budget - num_tokens)
        return chunks

    def _prefill_tokens(self, request: Request, budget: int) -> int:
        if not self._limits.whole_prompts:
            return min(request.num_pending, budget)
        fits = request.num_pending <= budget or budget == self._limits.step_tokens
        return request.num_pending if fits else 0

    def _chunk(self, request: Request, num_tokens: int) -> Chunk:
        assert request.slot is not None, "only running requests are computed"
        return Chunk(
            request_id=request.request_id,
            slot=request.slot,
            start=request.num_computed,
            token_ids=request.pending_ids(num_tokens),
            reserved_tokens=self._slots.held_tokens(request.request_id),
            is_decode=request.is_decoding,
            is_sampled=num_tokens == request.num_pending,
        )

    # --- endings -------------------------------------------------------------------------------

    def _take_token(self, request: Request, token_id: int, now: float) -> int | None:
        if request.first_token_at is None:
            request.first_token_at = now
        request.generated_ids.append(token_id)
        if token_id in request.stop_ids:
            self._end(request, FinishReason.STOP)
            return None
        if len(request.generated_ids) >= request.max_tokens:
            self._end(request, FinishReason.LENGTH)
        return token_id

    def _end(self, request: Request, reason: FinishReason) -> None:
        if request.status is RequestStatus.RUNNING:
            self._leave_batch(request)
        else:
            self._waiting.remove(request)
        request.move_to(RequestStatus.FINISHED)
        request.finish = reason

    def _leave_batch(self, request: Request) -> None:
        self._running.remove(request)
        self._freed_slots.append(self._slots.free(request.request_id))
        request.slot = None
