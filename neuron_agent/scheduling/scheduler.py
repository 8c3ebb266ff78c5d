"""Decides, step by step, which tokens of which sequences are computed together.

Continuous batching with chunked prefill: a step takes one token of every decoding sequence and
fills up with prompt tokens, up to a budget, so that a long prompt never stalls the others.
Who is admitted next is fair between principals and starves nobody (`waiting`). What of a prompt is
in the cache already is not computed again.

A running sequence holds KV tokens for what it has and some more to come. When they run out, the
youngest sequence is preempted: it goes back to the head of the queue and is computed again later,
with the tokens it already gave out. The oldest always gets on, so everything ends.

It knows no tensor, no model and no clock. Between `schedule` and `update` nothing changes but
who is admitted, so a step that failed can simply be scheduled again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from neuron_agent.scheduling.batch import Batch, Chunk
from neuron_agent.scheduling.books import IntegrityError, Place
from neuron_agent.scheduling.limits import PromptBudget
from neuron_agent.scheduling.limits import SchedulerLimits as SchedulerLimits
from neuron_agent.scheduling.pool import KvPool
from neuron_agent.scheduling.request import FinishReason, Request, RequestStatus
from neuron_agent.scheduling.waiting import WaitingLine


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step did for one request."""

    request: Request
    is_sampled: bool
    token_id: int | None
    """None in prefill, and for a stop token."""


class Scheduler:
    def __init__(self, pool: KvPool, limits: SchedulerLimits | None = None) -> None:
        self._pool = pool
        self._limits = limits or SchedulerLimits()
        self._waiting = WaitingLine()
        self._running: dict[str, Request] = {}  # oldest first
        self._no_room_for: Request | None = None  # until somebody leaves
        self._num_prompt_tokens = 0  # of all that were admitted
        self._num_cached_tokens = 0
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
        """How much of the cache running sequences hold; what is kept for reuse counts as free."""
        return self._pool.used_tokens / self._pool.capacity_tokens

    @property
    def prefix_hit_ratio(self) -> float:
        """How many of all prompt tokens admitted so far were in the cache."""
        return self._num_cached_tokens / max(1, self._num_prompt_tokens)

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError if it could never be held by the cache."""
        if request.most_tokens > self._pool.capacity_tokens:
            raise ValueError(f"{request.request_id} needs {request.most_tokens} KV tokens")
        if not request.prompt_ids or (request.max_tokens < 1 and not request.is_embedding):
            raise ValueError(f"{request.request_id} has no prompt or asks for no token")
        self._waiting.add(request)

    def schedule(self, now: float) -> Batch | None:
        """Return what the next step computes, or None if there is nothing to do."""
        self._secure_reservations()
        self._admit(now)
        chunks = self._decode_chunks()
        if len(chunks) < len(self._running):
            chunks += self._prefill_chunks(is_mixed=bool(chunks))
        return Batch(tuple(chunks), self._pool.copies) if chunks else None

    def update(self, batch: Batch, tokens: Mapping[str, int], now: float) -> tuple[Advance, ...]:
        """Record a computed batch and the token each of its sampled chunks gave.

        A request that ended meanwhile, or has no token in `tokens` though it was sampled, is
        left as it is.
        """
        self._settle_copies(batch)
        advances = []
        for chunk in batch.chunks:
            request = self._running.get(chunk.request_id)
            token_id = tokens.get(chunk.request_id) if chunk.is_sampled else None
            if request is None or (chunk.is_sampled and token_id is None):
                continue
            request.num_computed += len(chunk.token_ids)
            self._pool.record(chunk.request_id, chunk.token_ids)
            if token_id is not None:
                token_id = self._take_token(request, token_id, now)
            elif chunk.is_embedded:
                self._end(request, FinishReason.STOP)
            advances.append(Advance(request, chunk.is_sampled, token_id))
        return tuple(advances)

    def cancel(self, request_id: str) -> Request | None:
        """Take a request out of queue or batch at once; None if it is not there."""
        return self.finish(request_id, FinishReason.CANCELLED)

    def finish(self, request_id: str, reason: FinishReason) -> Request | None:
        """End a request for a reason of its own; None if it is not there."""
        request = self._running.get(request_id) or next(
            (request for request in self._waiting if request.request_id == request_id), None
        )
        if request is not None:
            self._end(request, reason)
        return request

    def youngest_of(self, batch: Batch) -> Request | None:
        """Return the last admitted request of a batch, the one to give up if it cannot be run."""
        in_batch = {chunk.request_id for chunk in batch.chunks}
        running = reversed(self._running.values())
        return next((request for request in running if request.request_id in in_batch), None)

    def take_freed_slots(self) -> tuple[int, ...]:
        """Return the slots given up since the last call: their cache contents can go.

        Whoever keeps contents by slot asks after `schedule` and before computing its batch,
        which may use a slot anew that was given up just now.
        """
        return self._pool.take_freed_slots()

    def drop_prefixes(self) -> None:
        """Give up everything that is kept in the cache only for reuse."""
        self._pool.drop_prefixes()

    def check_integrity(self) -> None:
        """Raise IntegrityError unless exactly the running requests hold room in the cache."""
        self._pool.check_integrity()
        if self._running.keys() != self._pool.holders:
            raise IntegrityError("room is held by others than the running requests")
        if any(request.status is not RequestStatus.RUNNING for request in self._running.values()):
            raise IntegrityError("a request in the batch is not running")
        if any(request.status is not RequestStatus.WAITING for request in self._waiting):
            raise IntegrityError("a request in the queue is not waiting")

    # --- admission and reservations ------------------------------------------------------------

    def _wanted_tokens(self, request: Request) -> int:
        return min(request.num_known + self._limits.reserve_tokens, request.most_tokens)

    def _admit(self, now: float) -> None:
        """Let in whoever is next until there is no room; nobody slips past who is too large."""
        if not self._waiting:
            return
        num_running = Counter(request.principal for request in self._running.values())
        while self._waiting:
            request = self._waiting.choose(num_running)
            if request is self._no_room_for:
                return
            place = self._pool.allocate(
                request.request_id, request.known_ids, self._wanted_tokens(request)
            )
            if place is None:
                self._no_room_for = request
                return
            self._waiting.take(request)
            self._start(request, place, now)
            num_running[request.principal] += 1

    def _start(self, request: Request, place: Place, now: float) -> None:
        request.move_to(RequestStatus.RUNNING)
        request.slot, request.block_ids = place.slot, place.block_ids
        request.held_tokens = self._pool.held_tokens(request.request_id)
        request.num_computed = place.num_cached
        if request.admitted_at is None:
            request.admitted_at = now
            request.num_cached = place.num_cached
            self._num_cached_tokens += place.num_cached
            self._num_prompt_tokens += len(request.prompt_ids)
        self._running[request.request_id] = request

    def _secure_reservations(self) -> None:
        """Let every running sequence hold the tokens of its next step, oldest first."""
        short = [r for r in self._running.values() if r.held_tokens < r.num_known]
        for request in short:
            while request.status is RequestStatus.RUNNING and not self._grow(request):
                self._preempt(next(reversed(self._running.values())))

    def _grow(self, request: Request) -> bool:
        """Make room for the next token; a little will do where there is not as much as wanted."""
        is_secured = any(
            self._pool.grow(request.request_id, tokens)
            for tokens in (self._wanted_tokens(request), request.num_known)
        )
        request.held_tokens = self._pool.held_tokens(request.request_id)
        return is_secured

    def _preempt(self, request: Request) -> None:
        self._leave_batch(request, is_kept=True)
        request.move_to(RequestStatus.WAITING)
        request.num_computed = 0
        self._waiting.put_back(request)
        self.num_preemptions += 1

    def _settle_copies(self, batch: Batch) -> None:
        if batch.copies:
            self._pool.settle(batch.copies)
            self._no_room_for = None  # the copies' sources may go from now on

    # --- what a step computes ------------------------------------------------------------------

    def _decode_chunks(self) -> list[Chunk]:
        return [
            Chunk(
                request.request_id,
                _slot_of(request),
                request.num_computed,
                (request.generated_ids[-1],),
                request.held_tokens,
                is_decode=True,
                is_sampled=True,
                block_ids=request.block_ids,
            )
            for request in self._running.values()
            if request.is_decoding
        ]

    def _prefill_chunks(self, *, is_mixed: bool) -> list[Chunk]:
        chunks: list[Chunk] = []
        budget = PromptBudget(self._limits, len(self._running), is_mixed=is_mixed)
        for request in self._running.values():
            if request.is_decoding:
                continue
            num_tokens = budget.take(request.num_computed, request.num_pending)
            if num_tokens == 0:
                break
            chunks.append(_prefill_chunk(request, num_tokens))
        return chunks

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
            # What went wrong may be in the cache: it is never used again.
            self._leave_batch(request, is_kept=reason is not FinishReason.ERROR)
        else:
            self._waiting.remove(request)
        request.move_to(RequestStatus.FINISHED)
        request.finish = reason

    def _leave_batch(self, request: Request, *, is_kept: bool) -> None:
        del self._running[request.request_id]
        self._pool.free(request.request_id, is_kept=is_kept)
        request.slot, request.block_ids = None, ()
        self._no_room_for = None


def _slot_of(request: Request) -> int:
    assert request.slot is not None, "only running requests are computed"
    return request.slot


def _prefill_chunk(request: Request, num_tokens: int) -> Chunk:
    is_last = num_tokens == request.num_pending
    return Chunk(
        request.request_id,
        _slot_of(request),
        request.num_computed,
        request.pending_ids(num_tokens),
        request.held_tokens,
        is_decode=False,
        is_sampled=is_last and not request.is_embedding,
        is_embedded=is_last and request.is_embedding,
        block_ids=request.block_ids,
    )
