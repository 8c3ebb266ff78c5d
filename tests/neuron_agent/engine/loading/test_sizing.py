from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.engine.loading.sizing import (
    KV_TOKENS_BY_DEFAULT,
    LEAST_CONTEXT_TOKENS,
    SLACK_BYTES,
    SLACK_SHARE,
    DoesNotFit,
    ModelNeeds,
    StepShape,
    plan_memory,
    settled_bytes,
    workspace_bytes,
)

needs = st.builds(
    ModelNeeds,
    weight_bytes=st.integers(0, 10**10),
    kv_token_bytes=st.integers(0, 10**6),
    workspace_bytes=st.integers(0, 10**9),
    context_tokens=st.integers(1, 300_000),
)


@given(needs, st.integers(0, 3 * 10**11))
def test_a_plan_stays_within_what_is_free_and_holds_its_context(
    needs: ModelNeeds, free_bytes: int
) -> None:
    plan = plan_memory(needs, free_bytes)
    if isinstance(plan, DoesNotFit):
        assert plan.needed_bytes > free_bytes
        return
    assert plan.memory_bytes <= free_bytes
    assert plan.context_tokens <= min(needs.context_tokens, plan.kv_tokens)
    assert plan.context_tokens >= min(needs.context_tokens, LEAST_CONTEXT_TOKENS)
    assert plan.kv_tokens <= max(needs.context_tokens, KV_TOKENS_BY_DEFAULT)
    assert plan.needed_bytes <= plan.memory_bytes
    assert not isinstance(plan_memory(needs, plan.needed_bytes), DoesNotFit)


def test_what_a_model_needs_does_not_grow_with_what_is_idle() -> None:
    needs = ModelNeeds(1000, 10, 1000, context_tokens=200_000)
    roomy, ample = plan_memory(needs, 10**6), plan_memory(needs, 10**9)
    assert not isinstance(roomy, DoesNotFit)
    assert not isinstance(ample, DoesNotFit)
    assert roomy.memory_bytes < ample.memory_bytes
    assert roomy.needed_bytes == ample.needed_bytes == 2000 + 10 * KV_TOKENS_BY_DEFAULT


@given(needs)
def test_what_does_not_fit_says_exactly_what_would(needs: ModelNeeds) -> None:
    refusal = plan_memory(needs, -1)
    assert isinstance(refusal, DoesNotFit)
    assert not isinstance(plan_memory(needs, refusal.needed_bytes), DoesNotFit)
    assert isinstance(plan_memory(needs, refusal.needed_bytes - 1), DoesNotFit)


def test_a_small_model_leaves_room_for_others() -> None:
    plan = plan_memory(ModelNeeds(1000, 10, 1000, context_tokens=512), 10**9)
    assert not isinstance(plan, DoesNotFit)
    assert (plan.kv_tokens, plan.context_tokens) == (KV_TOKENS_BY_DEFAULT, 512)


def test_workspace_grows_with_everything_it_depends_on() -> None:
    base = {
        "step_tokens": 256,
        "mask_tokens": 256,
        "max_in_flight": 32,
        "hidden_size": 64,
        "intermediate_size": 96,
        "vocabulary_size": 1000,
        "context_tokens": 512,
        "item_bytes": 4,
    }
    smallest = workspace_bytes(StepShape(**base))
    for name in base:
        assert workspace_bytes(StepShape(**{**base, name: base[name] * 2})) > smallest, name


@given(needs, st.integers(0, 3 * 10**11), st.integers(0, 3 * 10**11), st.booleans())
def test_a_claim_covers_what_is_used_and_never_shrinks(
    needs: ModelNeeds, free_bytes: int, grown_bytes: int, is_cache_taken: bool
) -> None:
    plan = plan_memory(needs, free_bytes)
    if isinstance(plan, DoesNotFit):
        return
    claim_bytes = settled_bytes(plan, grown_bytes, is_cache_taken=is_cache_taken)
    fixed_bytes = grown_bytes - (plan.kv_bytes if is_cache_taken else 0)
    planned_bytes = plan.weight_bytes + plan.workspace_bytes
    slack_bytes = max(SLACK_BYTES, SLACK_SHARE * planned_bytes)
    assert claim_bytes >= plan.memory_bytes
    assert claim_bytes - plan.kv_bytes >= fixed_bytes - slack_bytes
    if fixed_bytes <= planned_bytes + slack_bytes:
        assert claim_bytes == plan.memory_bytes


def test_a_model_that_took_twice_its_plan_claims_it() -> None:
    plan = plan_memory(ModelNeeds(10**9, 1000, 10**6, 2048), 10**10)
    assert not isinstance(plan, DoesNotFit)
    claim_bytes = settled_bytes(plan, 2 * 10**9, is_cache_taken=False)
    assert claim_bytes == 2 * 10**9 + plan.kv_bytes
    with_cache = settled_bytes(plan, 2 * 10**9 + plan.kv_bytes, is_cache_taken=True)
    assert with_cache == claim_bytes
