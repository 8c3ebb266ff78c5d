"""Runs of a scheduler with the toy model, as an engine makes its steps; and what to ask for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.limits import SchedulerLimits
from neuron_agent.scheduling.pool import KvLayout, build_pool
from neuron_agent.scheduling.request import FinishReason, Request, RequestStatus
from neuron_agent.scheduling.scheduler import Scheduler
from tests.neuron_agent.scheduling.toy_model import (
    STOP_ID,
    ToyModel,
    generate_alone,
    next_token,
)

CAPACITY_TOKENS = 96
BLOCK_TOKENS = 4
STEP_TOKENS = 8
MOST_STEPS = 3000
LAYOUTS = list(KvLayout)


@dataclass(frozen=True)
class Ask:
    prompt: tuple[int, ...]
    max_tokens: int = 4
    arrives_at: int = 0  # step
    cancelled_at: int | None = None
    fails_at: int | None = None
    principal: str = ""
    is_embedding: bool = False


# Prompts begin alike often, and for long enough to be shared in any layout.
BEGINNINGS = (tuple(range(20, 44)), (*range(20, 41), 3, 3, 3, 3, 3, 3), ())
prompts = st.builds(
    lambda beginning, length, rest: (beginning[:length] + tuple(rest)) or (1,),
    st.sampled_from(BEGINNINGS),
    st.integers(0, 27),
    st.lists(st.integers(0, 4), max_size=20),
)
asks = st.builds(
    Ask,
    prompt=prompts,
    max_tokens=st.integers(1, 24),
    arrives_at=st.integers(0, 30),
    principal=st.sampled_from("ab"),
    is_embedding=st.integers(0, 5).map(lambda number: number == 0),
)
leaving = st.builds(
    lambda ask, cancelled_after, fails_after: replace(
        ask,
        cancelled_at=None if cancelled_after is None else ask.arrives_at + cancelled_after,
        fails_at=None if fails_after is None else ask.arrives_at + fails_after,
    ),
    asks,
    st.none() | st.integers(0, 20),
    st.none() | st.integers(0, 20),
)
limits = st.builds(
    SchedulerLimits,
    step_tokens=st.integers(1, 32),
    mixed_tokens=st.integers(1, 16),
    mixed_tokens_per_sequence=st.integers(0, 4),
    doubling_tokens=st.integers(1, 40),
    reserve_tokens=st.integers(1, 30),
)
layouts = st.sampled_from(LAYOUTS)


def make_scheduler(
    layout: KvLayout = KvLayout.SLOTS,
    limits: SchedulerLimits | None = None,
    max_running: int = 4,
    capacity: int = CAPACITY_TOKENS,
) -> Scheduler:
    pool = build_pool(
        layout, max_running=max_running, capacity_tokens=capacity, block_tokens=BLOCK_TOKENS
    )
    return Scheduler(pool, limits or SchedulerLimits(step_tokens=STEP_TOKENS))


def make_request(
    name: str, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 4, **others: object
) -> Request:
    stop_ids = frozenset({STOP_ID})
    return Request(name, prompt, max_tokens, stop_ids, submitted_at=0.0, **others)  # type: ignore[arg-type]


def requests_of(arrivals: list[Ask]) -> list[Request]:
    return [
        make_request(
            str(index),
            ask.prompt,
            ask.max_tokens,
            principal=ask.principal,
            is_embedding=ask.is_embedding,
        )
        for index, ask in enumerate(arrivals)
    ]


class Run:
    """A scheduler and a model that work together, as the engine does it."""

    def __init__(
        self,
        layout: KvLayout = KvLayout.SLOTS,
        limits: SchedulerLimits | None = None,
        **others: int,
    ) -> None:
        self.scheduler = make_scheduler(layout, limits, **others)
        self.model = ToyModel(layout, BLOCK_TOKENS)
        self.embeddings: dict[str, int] = {}
        self.now = 0.0

    def step(self, *, fails: bool = False) -> Batch | None:
        """Run one step, or have it fail half-way."""
        batch = self.scheduler.schedule(self.now)
        self.model.release(self.scheduler.take_freed_slots())
        self.scheduler.check_integrity()
        if batch is None:
            return None
        if fails:
            self.model.compute(batch, most_chunks=len(batch.chunks) // 2)
            return batch
        results = self.model.compute(batch)
        self.embeddings |= results.embeddings
        self.scheduler.update(batch, results.tokens, self.now)
        self.scheduler.check_integrity()
        return batch

    def finish_all(
        self,
        arrivals: list[Ask],
        after_step: Callable[[int], None] = lambda _: None,
        is_failing: Callable[[int], bool] = lambda _: False,
    ) -> list[Request]:
        """Add, cancel and fail each request at its steps; step until all have ended."""
        requests = requests_of(arrivals)
        for number in range(MOST_STEPS):
            self.now = float(number)
            for ask, request in zip(arrivals, requests, strict=True):
                if ask.arrives_at == number:
                    self.scheduler.add(request)
                if ask.cancelled_at == number:
                    self.scheduler.cancel(request.request_id)
                if ask.fails_at == number:
                    self.scheduler.finish(request.request_id, FinishReason.ERROR)
            is_idle = self.step(fails=is_failing(number)) is None
            after_step(number)
            if is_idle and number > max((ask.arrives_at for ask in arrivals), default=0):
                return requests
        raise AssertionError(f"not done after {MOST_STEPS} steps")


def assert_gives_what_it_gives_alone(run: Run, ask: Ask, request: Request) -> None:
    assert request.status is RequestStatus.FINISHED
    if ask.is_embedding:
        assert request.finish is FinishReason.STOP
        assert run.embeddings[request.request_id] == next_token(ask.prompt)
        return
    alone = generate_alone(ask.prompt, ask.max_tokens, request.stop_ids)
    assert request.generated_ids == alone
    is_stopped = alone[-1] == STOP_ID
    assert request.finish is (FinishReason.STOP if is_stopped else FinishReason.LENGTH)
