from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.books import IntegrityError
from neuron_agent.scheduling.limits import SchedulerLimits
from neuron_agent.scheduling.pool import KvLayout
from neuron_agent.scheduling.request import FinishReason, RequestStatus
from tests.neuron_agent.scheduling.toy_model import generate_alone
from tests.neuron_agent.scheduling.toy_run import (
    CAPACITY_TOKENS,
    LAYOUTS,
    Ask,
    Run,
    asks,
    assert_gives_what_it_gives_alone,
    layouts,
    leaving,
    limits,
    make_request,
    make_scheduler,
    requests_of,
)

# --- laws -----------------------------------------------------------------------------------------


@given(st.lists(asks, max_size=12), limits, layouts)
def test_every_request_ends_and_gives_what_it_gives_alone(
    arrivals: list[Ask], limits: SchedulerLimits, layout: KvLayout
) -> None:
    run = Run(layout, limits)
    for ask, request in zip(arrivals, run.finish_all(arrivals), strict=True):
        assert_gives_what_it_gives_alone(run, ask, request)


@given(st.lists(leaving, max_size=12), limits, layouts, st.integers(2, 5))
def test_neither_failed_steps_nor_those_who_leave_change_what_the_others_get(
    arrivals: list[Ask], limits: SchedulerLimits, layout: KvLayout, failing_every: int
) -> None:
    run = Run(layout, limits)
    requests = run.finish_all(arrivals, is_failing=lambda number: number % failing_every == 0)
    for ask, request in zip(arrivals, requests, strict=True):
        if request.finish in (FinishReason.STOP, FinishReason.LENGTH):
            assert_gives_what_it_gives_alone(run, ask, request)
        else:
            alone = generate_alone(ask.prompt, ask.max_tokens, request.stop_ids)
            assert request.generated_ids == alone[: len(request.generated_ids)]


@given(st.lists(asks, max_size=8), st.lists(asks, max_size=8), layouts, st.integers(0, 15))
def test_giving_up_prefixes_in_between_changes_no_token(
    arrivals: list[Ask], later: list[Ask], layout: KvLayout, dropped_at: int
) -> None:
    run = Run(layout)

    def drop(number: int) -> None:
        if number == dropped_at:
            run.scheduler.drop_prefixes()
            run.scheduler.check_integrity()

    arrivals = arrivals + [replace(ask, arrives_at=ask.arrives_at + 20) for ask in later]
    for ask, request in zip(arrivals, run.finish_all(arrivals, drop), strict=True):
        assert_gives_what_it_gives_alone(run, ask, request)


@given(st.lists(leaving, max_size=12), limits, layouts)
def test_nothing_is_leaked(arrivals: list[Ask], limits: SchedulerLimits, layout: KvLayout) -> None:
    run = Run(layout, limits)
    run.finish_all(arrivals)
    assert run.scheduler.kv_used_ratio == 0
    assert (run.scheduler.num_running, run.scheduler.num_waiting) == (0, 0)
    run.scheduler.drop_prefixes()
    run.scheduler.check_integrity()
    run.model.release(run.scheduler.take_freed_slots())
    if layout is not KvLayout.BLOCKS:
        assert not run.model.held_slots


@given(st.lists(leaving, min_size=1, max_size=8), limits, layouts)
def test_a_cancelled_request_is_out_before_the_next_step(
    arrivals: list[Ask], limits: SchedulerLimits, layout: KvLayout
) -> None:
    run = Run(layout, limits)

    def no_cancelled_request_is_there(number: int) -> None:
        there = {*run.scheduler._running, *(r.request_id for r in run.scheduler._waiting)}
        for index, ask in enumerate(arrivals):
            if ask.cancelled_at is not None and ask.cancelled_at <= number:
                assert str(index) not in there

    requests = run.finish_all(arrivals, no_cancelled_request_is_there)
    assert all(request.status is RequestStatus.FINISHED for request in requests)


@given(st.lists(asks, min_size=2, max_size=10), limits, layouts)
def test_nobody_overtakes_within_a_principal(
    arrivals: list[Ask], limits: SchedulerLimits, layout: KvLayout
) -> None:
    requests = Run(layout, limits).finish_all(arrivals)
    for principal in "ab":
        in_line = sorted(
            (ask.arrives_at, index)
            for index, ask in enumerate(arrivals)
            if ask.principal == principal
        )
        admitted_at = [requests[index].admitted_at or 0.0 for _, index in in_line]
        assert admitted_at == sorted(admitted_at)


@given(st.lists(asks, max_size=10), limits, layouts)
def test_a_step_takes_every_decoding_sequence_and_prompts_within_budget(
    arrivals: list[Ask], limits: SchedulerLimits, layout: KvLayout
) -> None:
    run = Run(layout, limits)
    for request in requests_of(arrivals):
        run.scheduler.add(request)
    while (batch := run.scheduler.schedule(0.0)) is not None:
        decoding = [r.request_id for r in run.scheduler._running.values() if r.is_decoding]
        num_decoding = len(decoding)
        assert [chunk.request_id for chunk in batch.chunks[:num_decoding]] == decoding
        assert not any(chunk.is_decode for chunk in batch.chunks[num_decoding:])
        assert batch.num_prefill_tokens <= limits.step_tokens
        if decoding:
            more = limits.mixed_tokens_per_sequence * run.scheduler.num_running
            assert batch.num_prefill_tokens <= limits.mixed_tokens + more
        run.model.release(run.scheduler.take_freed_slots())
        run.scheduler.update(batch, run.model.compute(batch).tokens, 0.0)


@given(st.lists(asks, min_size=2, max_size=8), st.integers(1, 8), layouts)
def test_the_oldest_is_in_every_step(
    arrivals: list[Ask], reserve_tokens: int, layout: KvLayout
) -> None:
    run = Run(layout, SchedulerLimits(reserve_tokens=reserve_tokens))
    requests = requests_of([replace(ask, principal="") for ask in arrivals])
    for request in requests:
        run.scheduler.add(request)
    while (batch := run.scheduler.schedule(0.0)) is not None:
        oldest = next(r for r in requests if r.status is not RequestStatus.FINISHED)
        assert oldest.request_id in {chunk.request_id for chunk in batch.chunks}
        run.model.release(run.scheduler.take_freed_slots())
        run.scheduler.update(batch, run.model.compute(batch).tokens, 0.0)


# --- prefixes -------------------------------------------------------------------------------------

LONG = tuple(range(100, 148))


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_a_prompt_that_was_computed_before_is_taken_from_the_cache(layout: KvLayout) -> None:
    run = Run(layout)
    first, second = run.finish_all([Ask(LONG), Ask(LONG, arrives_at=20)])
    assert first.num_cached == 0
    assert second.num_cached == len(LONG) - 1
    assert run.scheduler.prefix_hit_ratio == (len(LONG) - 1) / (2 * len(LONG))
    assert second.generated_ids == first.generated_ids


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_the_next_turn_of_a_chat_finds_the_reply_in_the_cache(layout: KvLayout) -> None:
    run = Run(layout)
    [first] = run.finish_all([Ask(LONG[:20], max_tokens=6)])
    told = LONG[:20] + tuple(first.generated_ids)
    second = make_request("next", (*told, 9, 9, 9), 2)
    run.scheduler.add(second)
    run.step()
    assert second.num_cached == len(told) - 1, "all but the last token, which nobody computed"


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_a_running_sequence_shares_what_it_has(layout: KvLayout) -> None:
    run = Run(layout, SchedulerLimits(step_tokens=64))
    arrivals = [Ask(LONG[:32], 20), Ask((*LONG[:32], 5, 5), 4, arrives_at=2)]
    first, second = run.finish_all(arrivals)
    assert second.num_cached == 32
    assert first.generated_ids == generate_alone(LONG[:32], 20, first.stop_ids)


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_nothing_of_a_request_that_went_wrong_is_used_again(layout: KvLayout) -> None:
    run = Run(layout)
    run.finish_all([Ask(LONG, fails_at=7)])
    [again] = run.finish_all([Ask(LONG)])
    assert again.num_cached == 0


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_a_request_that_went_wrong_takes_along_the_prefix_it_was_given(layout: KvLayout) -> None:
    run = Run(layout)
    arrivals = [Ask(LONG), Ask((*LONG, 1, 2), arrives_at=20, fails_at=21), Ask(LONG, arrives_at=22)]
    assert [request.num_cached for request in run.finish_all(arrivals)] == [0, len(LONG), 0]


def test_states_that_cannot_be_copied_are_not_shared() -> None:
    run = Run(KvLayout.PRIVATE)
    run.finish_all([Ask(LONG), Ask(LONG, arrives_at=20)])
    assert run.scheduler.prefix_hit_ratio == 0
    assert run.scheduler.take_freed_slots() == (), "all were told already"


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_a_batch_is_repeated_with_its_copies_until_it_is_done(layout: KvLayout) -> None:
    run = Run(layout, SchedulerLimits(step_tokens=64))
    run.scheduler.add(make_request("a", LONG[:33], 20))
    run.step()
    run.scheduler.add(make_request("b", (*LONG[:31], 5, 5), 4))
    batch = run.scheduler.schedule(0.0)
    assert batch is not None
    assert [copy.num_tokens for copy in batch.copies] == [31 if layout is KvLayout.SLOTS else 3]
    assert run.scheduler.schedule(1.0) == batch
    run.step()
    again = run.scheduler.schedule(2.0)
    assert again is not None
    assert again.copies == ()


def test_a_source_that_ends_stays_until_it_was_copied() -> None:
    run = Run(KvLayout.SLOTS, SchedulerLimits(step_tokens=64))
    run.scheduler.add(make_request("a", LONG[:33], 20))
    run.step()
    other = make_request("b", (*LONG[:32], 5, 5), 4)
    run.scheduler.add(other)
    run.scheduler.schedule(0.0)
    run.scheduler.finish("a", FinishReason.ERROR)
    run.scheduler.check_integrity()
    assert run.scheduler.take_freed_slots() == ()
    while run.step() is not None:
        pass
    assert other.generated_ids == generate_alone(other.prompt_ids, 4, other.stop_ids)


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_what_is_kept_gives_way_to_whoever_needs_the_room(layout: KvLayout) -> None:
    run = Run(layout, capacity=64)
    other = tuple(range(200, 260))
    first, large, again = run.finish_all(
        [Ask(LONG), Ask(other, arrives_at=20), Ask(LONG, arrives_at=40)]
    )
    assert large.finish is not None
    assert again.num_cached < len(LONG) // 4
    assert run.scheduler.num_preemptions == 0
    assert again.generated_ids == first.generated_ids


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_what_was_used_last_is_given_up_last(layout: KvLayout) -> None:
    run = Run(layout, capacity=128, max_running=1)
    mine, yours, new = LONG[:40], tuple(range(200, 240)), tuple(range(300, 340))
    run.finish_all([Ask(mine), Ask(yours, arrives_at=20), Ask((*mine[:36], 1), arrives_at=40)])
    run.finish_all([Ask(new)])
    [again] = run.finish_all([Ask(mine)])
    assert again.num_cached >= 32
    [gone] = run.finish_all([Ask(yours)])
    assert gone.num_cached < 40 - 1


# --- admission ------------------------------------------------------------------------------------


def test_a_newcomer_is_not_behind_a_flood_of_another() -> None:
    flood = [Ask((1, 2, index), 8, principal="flood") for index in range(12)]
    run = Run(max_running=2)
    requests = run.finish_all([*flood, Ask((9, 9), 8, arrives_at=2, principal="newcomer")])
    num_before = sum((r.admitted_at or 0) < (requests[-1].admitted_at or 0) for r in requests)
    assert num_before <= 4


def test_those_admitted_in_one_step_are_of_different_principals() -> None:
    run = Run(max_running=2)
    for name in ("a1", "a2", "b1"):
        run.scheduler.add(make_request(name, principal=name[0]))
    run.step()
    assert set(run.scheduler._running) == {"a1", "b1"}


def test_whoever_has_something_running_is_not_starved_by_ever_new_principals() -> None:
    run = Run(max_running=2)
    run.scheduler.add(make_request("first", (1, 1), 80, principal="a"))
    second = make_request("second", (2, 2), 2, principal="a")
    run.step()
    run.scheduler.add(second)
    for number in range(60):
        run.scheduler.add(make_request(f"new {number}", (3, number), 1, principal=f"{number}"))
        run.step()
        if second.status is not RequestStatus.WAITING:
            return
    raise AssertionError("starved")


# --- the rest -------------------------------------------------------------------------------------


def test_an_embedding_ends_with_its_prompt_and_needs_no_room_for_more() -> None:
    run = Run(KvLayout.SLOTS, SchedulerLimits(step_tokens=64))
    prompt = tuple(range(CAPACITY_TOKENS))
    request = make_request("a", prompt, max_tokens=5, is_embedding=True)
    run.scheduler.add(request)
    batches = []
    while (batch := run.step()) is not None:
        batches.append(batch)
    assert [len(batch.embedded) for batch in batches] == [0, 1]
    assert not any(batch.sampled for batch in batches)
    assert request.finish is FinishReason.STOP


def test_uncut_prompts_are_never_cut() -> None:
    limits = SchedulerLimits(step_tokens=8, whole_prompts=True)
    run = Run(KvLayout.PRIVATE, limits)
    for name, length in (("a", 5), ("b", 5), ("long", 20)):
        run.scheduler.add(make_request(name, tuple(range(length)), max_tokens=1))
    steps = []
    while (batch := run.step()) is not None:
        steps.append([(chunk.request_id, len(chunk.token_ids)) for chunk in batch.chunks])
    assert steps == [[("a", 5)], [("b", 5)], [("long", 20)]]


def test_fewer_prompt_tokens_are_computed_beside_decoding_sequences() -> None:
    limits = SchedulerLimits(step_tokens=40, mixed_tokens=4, mixed_tokens_per_sequence=2)
    run = Run(KvLayout.SLOTS, limits)
    run.scheduler.add(make_request("a", (1, 2), 20))
    run.step()
    run.scheduler.add(make_request("b", LONG, 1))
    batch = run.step()
    assert batch is not None
    assert batch.num_prefill_tokens == 4 + 2 * 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_when_the_cache_is_full_the_youngest_makes_room_and_comes_back(layout: KvLayout) -> None:
    run = Run(layout, SchedulerLimits(step_tokens=64, reserve_tokens=2), capacity=32)
    arrivals = [Ask((1, 2, 3, 4), 20), Ask((5, 6, 7, 8), 20), Ask((9, 9, 9, 9), 20)]
    requests = run.finish_all(arrivals)
    assert run.scheduler.num_preemptions > 0
    for ask, request in zip(arrivals, requests, strict=True):
        assert request.generated_ids == generate_alone(ask.prompt, 20, request.stop_ids)


@pytest.mark.parametrize("layout", [KvLayout.SLOTS, KvLayout.BLOCKS])
def test_room_is_looked_for_again_when_somebody_has_left(layout: KvLayout) -> None:
    run = Run(layout, capacity=40)
    waiting = make_request("large", tuple(range(30)), 8)
    run.scheduler.add(make_request("a", (1, 1, 1), 20))
    run.scheduler.add(waiting)
    run.step()
    run.step()
    assert waiting.admitted_at is None
    run.scheduler.cancel("a")
    run.step()
    assert waiting.admitted_at is not None


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
