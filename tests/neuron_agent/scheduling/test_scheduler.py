from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.request import FinishReason, Request, RequestStatus
from neuron_agent.scheduling.scheduler import Scheduler, SchedulerLimits
from neuron_agent.scheduling.slots import IntegrityError, SlotPool
from tests.neuron_agent.scheduling.toy_model import STOP_ID, ToyModel, generate_alone

CAPACITY_TOKENS = 64
STEP_TOKENS = 8
MOST_STEPS = 2000


@dataclass(frozen=True)
class Ask:
    prompt: tuple[int, ...]
    max_tokens: int
    arrives_at: int  # step
    cancelled_at: int | None = None


asks = st.builds(
    Ask,
    prompt=st.lists(st.integers(0, 49), min_size=1, max_size=40).map(tuple),
    max_tokens=st.integers(1, 24),
    arrives_at=st.integers(0, 30),
)
limits = st.builds(
    SchedulerLimits,
    step_tokens=st.integers(1, 16),
    reserve_tokens=st.integers(1, 30),
    whole_prompts=st.booleans(),
)


def make_scheduler(
    limits: SchedulerLimits | None = None, num_slots: int = 4, capacity: int = CAPACITY_TOKENS
) -> Scheduler:
    return Scheduler(
        SlotPool(num_slots, capacity), limits or SchedulerLimits(step_tokens=STEP_TOKENS)
    )


def make_request(name: str, prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 4) -> Request:
    return Request(name, prompt, max_tokens, stop_ids=frozenset({STOP_ID}), submitted_at=0.0)


def step(scheduler: Scheduler, model: ToyModel, now: float = 0.0) -> bool:
    batch = scheduler.schedule(now)
    if batch is None:
        return False
    scheduler.update(batch, model.run(batch), now)
    scheduler.check_integrity()
    return True


def run_all(
    scheduler: Scheduler, arrivals: list[Ask], after_step: Callable[[int], None] = lambda _: None
) -> list[Request]:
    """Add each request at its step and cancel it at its own; step until all have ended."""
    model = ToyModel()
    requests = [make_request(str(i), a.prompt, a.max_tokens) for i, a in enumerate(arrivals)]
    for number in range(MOST_STEPS):
        for ask, request in zip(arrivals, requests, strict=True):
            if ask.arrives_at == number:
                scheduler.add(request)
            if ask.cancelled_at == number:
                scheduler.cancel(request.request_id)
        is_idle = not step(scheduler, model, now=float(number))
        after_step(number)
        if is_idle and number > max((ask.arrives_at for ask in arrivals), default=0):
            return requests
    raise AssertionError(f"not done after {MOST_STEPS} steps")


@given(st.lists(asks, max_size=12), limits)
def test_every_request_ends_and_gives_what_it_gives_alone(
    arrivals: list[Ask], limits: SchedulerLimits
) -> None:
    scheduler = make_scheduler(limits)
    for ask, request in zip(arrivals, run_all(scheduler, arrivals), strict=True):
        assert request.status is RequestStatus.FINISHED
        alone = generate_alone(ask.prompt, ask.max_tokens, request.stop_ids)
        assert request.generated_ids == alone
        is_stopped = alone[-1] == STOP_ID
        assert request.finish is (FinishReason.STOP if is_stopped else FinishReason.LENGTH)


@given(st.lists(asks, max_size=12), limits)
def test_nothing_is_leaked(arrivals: list[Ask], limits: SchedulerLimits) -> None:
    scheduler = make_scheduler(limits)
    run_all(scheduler, arrivals)
    assert scheduler.kv_used_ratio == 0
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)


@given(st.lists(asks, min_size=1, max_size=8), limits, st.data())
def test_a_cancelled_request_is_out_before_the_next_step(
    arrivals: list[Ask], limits: SchedulerLimits, data: st.DataObject
) -> None:
    arrivals = [
        Ask(a.prompt, a.max_tokens, a.arrives_at, a.arrives_at + data.draw(st.integers(0, 20)))
        for a in arrivals
    ]
    scheduler = make_scheduler(limits)

    def no_cancelled_request_is_there(number: int) -> None:
        scheduled = {r.request_id for r in (*scheduler._running, *scheduler._waiting)}
        for index, ask in enumerate(arrivals):
            if ask.cancelled_at is not None and ask.cancelled_at <= number:
                assert str(index) not in scheduled

    requests = run_all(scheduler, arrivals, no_cancelled_request_is_there)
    assert all(request.status is RequestStatus.FINISHED for request in requests)
    assert scheduler.kv_used_ratio == 0


@given(st.lists(asks, min_size=2, max_size=10), limits)
def test_nobody_overtakes(arrivals: list[Ask], limits: SchedulerLimits) -> None:
    requests = run_all(make_scheduler(limits), arrivals)
    in_line = sorted(range(len(arrivals)), key=lambda index: arrivals[index].arrives_at)
    admitted_at = [requests[index].admitted_at for index in in_line]
    assert admitted_at == sorted(admitted_at, key=lambda at: at if at is not None else -1)


@given(st.lists(asks, max_size=10), st.integers(1, 16))
def test_a_step_takes_every_decoding_sequence_and_prompts_within_budget(
    arrivals: list[Ask], step_tokens: int
) -> None:
    scheduler = make_scheduler(SchedulerLimits(step_tokens=step_tokens))
    model = ToyModel()
    for index, ask in enumerate(arrivals):
        scheduler.add(make_request(str(index), ask.prompt, ask.max_tokens))
    while (batch := scheduler.schedule(0.0)) is not None:
        decoding = {r.request_id for r in scheduler._running if r.is_decoding}
        assert {chunk.request_id for chunk in batch.chunks if chunk.is_decode} == decoding
        assert batch.num_prefill_tokens <= step_tokens
        scheduler.update(batch, model.run(batch), 0.0)


def test_uncut_prompts_are_never_cut() -> None:
    scheduler = make_scheduler(SchedulerLimits(step_tokens=8, whole_prompts=True))
    for name, length in (("a", 5), ("b", 5), ("long", 20)):
        scheduler.add(make_request(name, tuple(range(length)), max_tokens=1))
    model, steps = ToyModel(), []
    while (batch := scheduler.schedule(0.0)) is not None:
        steps.append([(chunk.request_id, len(chunk.token_ids)) for chunk in batch.chunks])
        scheduler.update(batch, model.run(batch), 0.0)
    assert steps == [[("a", 5)], [("b", 5)], [("long", 20)]]


def test_when_the_cache_is_full_the_youngest_makes_room_and_comes_back() -> None:
    limits = SchedulerLimits(step_tokens=64, reserve_tokens=2)
    scheduler = make_scheduler(limits, capacity=30)
    arrivals = [Ask((1, 2, 3, 4), 20, 0), Ask((5, 6, 7, 8), 20, 0), Ask((9, 9, 9, 9), 20, 0)]
    requests = run_all(scheduler, arrivals)
    assert scheduler.num_preemptions > 0
    for ask, request in zip(arrivals, requests, strict=True):
        assert request.generated_ids == generate_alone(ask.prompt, 20, request.stop_ids)


@given(st.lists(asks, min_size=2, max_size=8), st.integers(1, 8))
def test_the_oldest_is_in_every_step(arrivals: list[Ask], reserve_tokens: int) -> None:
    scheduler = make_scheduler(SchedulerLimits(reserve_tokens=reserve_tokens))
    model = ToyModel()
    requests = [make_request(str(i), a.prompt, a.max_tokens) for i, a in enumerate(arrivals)]
    for request in requests:
        scheduler.add(request)
    while (batch := scheduler.schedule(0.0)) is not None:
        oldest = next(r for r in requests if r.status is not RequestStatus.FINISHED)
        assert oldest.status is RequestStatus.RUNNING
        scheduler.update(batch, model.run(batch), 0.0)


def test_a_step_that_failed_is_scheduled_again() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    assert scheduler.schedule(0.0) == scheduler.schedule(1.0)


def test_a_sampled_request_without_a_token_stays_where_it_was() -> None:
    scheduler = make_scheduler()
    request = make_request("a")
    scheduler.add(request)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert scheduler.update(batch, {}, 0.0) == ()
    assert request.num_computed == 0


def test_freed_slots_are_told_once() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    scheduler.schedule(0.0)
    scheduler.cancel("a")
    assert len(scheduler.take_freed_slots()) == 1
    assert scheduler.take_freed_slots() == ()


def test_the_youngest_of_a_batch_is_the_last_admitted() -> None:
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.add(make_request(name, (1, 2)))
    batch = scheduler.schedule(0.0)
    assert batch is not None
    youngest = scheduler.youngest_of(batch)
    assert youngest is not None
    assert youngest.request_id == "c"


def test_cancelling_the_unknown_is_harmless() -> None:
    assert make_scheduler().cancel("nobody") is None


@pytest.mark.parametrize(
    ("prompt", "max_tokens"), [((), 1), ((1,), 0), (tuple(range(60)), CAPACITY_TOKENS - 59)]
)
def test_what_could_never_run_is_refused(prompt: tuple[int, ...], max_tokens: int) -> None:
    with pytest.raises(ValueError):
        make_scheduler().add(make_request("a", prompt, max_tokens))


def test_integrity_sees_a_slot_without_a_running_request() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("a"))
    scheduler.schedule(0.0)
    scheduler._running.clear()
    with pytest.raises(IntegrityError):
        scheduler.check_integrity()
