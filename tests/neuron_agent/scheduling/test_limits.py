from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.limits import (
    GPU_LIMITS,
    PromptBudget,
    SchedulerLimits,
    limits_for,
)
from neuron_agent.scheduling.pool import KvLayout

limits = st.builds(
    SchedulerLimits,
    step_tokens=st.integers(1, 300),
    mixed_tokens=st.integers(0, 100),
    mixed_tokens_per_sequence=st.integers(0, 10),
    doubling_tokens=st.integers(1, 2000),
)
prompts = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 500)), min_size=1, max_size=8)


def take_all(
    limits: SchedulerLimits, num_decoding: int, prompts: list[tuple[int, int]]
) -> list[int]:
    num_running = num_decoding + len(prompts)
    budget = PromptBudget(limits, num_running, is_mixed=num_decoding > 0)
    return [budget.take(start, num_pending) for start, num_pending in prompts]


@given(limits, prompts)
def test_prompts_alone_share_all_of_a_step_in_their_order(
    limits: SchedulerLimits, prompts: list[tuple[int, int]]
) -> None:
    taken = take_all(limits, 0, prompts)
    assert sum(taken) == min(limits.step_tokens, sum(pending for _, pending in prompts))
    num_given = sum(num > 0 for num in taken)
    assert all(taken[:num_given]), "nobody gets anything before an older one"


@given(limits, st.integers(1, 300), prompts)
def test_beside_decoding_sequences_the_weight_is_bounded(
    limits: SchedulerLimits, num_decoding: int, prompts: list[tuple[int, int]]
) -> None:
    taken = take_all(limits, num_decoding, prompts)
    weights = [1 + start / limits.doubling_tokens for start, _ in prompts]
    weight = sum(num * each for num, each in zip(taken, weights, strict=True))
    most = limits.mixed_tokens + limits.mixed_tokens_per_sequence * (num_decoding + len(prompts))
    assert weight <= max(min(most, limits.step_tokens), weights[0]) + 1e-6
    assert all(num <= pending for num, (_, pending) in zip(taken, prompts, strict=True))


@given(limits, st.integers(0, 300), prompts)
def test_the_first_always_gets_on(
    limits: SchedulerLimits, num_decoding: int, prompts: list[tuple[int, int]]
) -> None:
    assert take_all(limits, num_decoding, prompts)[0] >= 1


@given(prompts, st.integers(0, 3))
def test_what_must_not_be_cut_comes_whole_or_not_at_all(
    prompts: list[tuple[int, int]], num_decoding: int
) -> None:
    taken = take_all(SchedulerLimits(whole_prompts=True), num_decoding, prompts)
    assert all(num in (0, pending) for num, (_, pending) in zip(taken, prompts, strict=True))
    assert taken[0] == prompts[0][1]


def test_pages_mean_a_gpu_and_what_cannot_be_cut_is_not() -> None:
    assert limits_for(KvLayout.BLOCKS) == GPU_LIMITS
    assert limits_for(KvLayout.SLOTS) == SchedulerLimits()
    assert limits_for(KvLayout.PRIVATE) == SchedulerLimits(whole_prompts=True)
