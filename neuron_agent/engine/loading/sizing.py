"""How much memory a model needs, and how much of it its KV cache gets.

Numbers in, numbers out: it reads no file and knows neither torch nor a device.
"""

from dataclasses import dataclass

KV_TOKENS_BY_DEFAULT = 32768
"""A small model does not take a whole device: its cache is capped at this or one full context."""

LEAST_CONTEXT_TOKENS = 2048
"""A model that cannot hold this much context (or its own, if shorter) does not fit."""


@dataclass(frozen=True, slots=True)
class ModelNeeds:
    """What a model takes, and the longest context it could be used with."""

    weight_bytes: int
    kv_token_bytes: int
    workspace_bytes: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    weight_bytes: int
    kv_bytes: int
    workspace_bytes: int
    kv_tokens: int
    context_tokens: int
    needed_bytes: int
    """What it would ask for elsewhere: with a cache of ordinary size, not with all that is idle."""

    @property
    def memory_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class DoesNotFit:
    needed_bytes: int
    free_bytes: int


def plan_memory(needs: ModelNeeds, free_bytes: int) -> MemoryPlan | DoesNotFit:
    """Give the KV cache what is free after weights and workspace, up to its cap."""
    fixed_bytes = needs.weight_bytes + needs.workspace_bytes
    least_tokens = min(needs.context_tokens, LEAST_CONTEXT_TOKENS)
    needed_bytes = fixed_bytes + least_tokens * needs.kv_token_bytes
    if needed_bytes > free_bytes:
        return DoesNotFit(needed_bytes, free_bytes)
    cap = max(needs.context_tokens, KV_TOKENS_BY_DEFAULT)
    # A model without a growing cache (a pure recurrence) has no price per token.
    affordable = (free_bytes - fixed_bytes) // needs.kv_token_bytes if needs.kv_token_bytes else cap
    kv_tokens = min(cap, affordable)
    ordinary_tokens = min(kv_tokens, KV_TOKENS_BY_DEFAULT)
    return MemoryPlan(
        weight_bytes=needs.weight_bytes,
        kv_bytes=kv_tokens * needs.kv_token_bytes,
        workspace_bytes=needs.workspace_bytes,
        kv_tokens=kv_tokens,
        context_tokens=min(needs.context_tokens, kv_tokens),
        needed_bytes=fixed_bytes + ordinary_tokens * needs.kv_token_bytes,
    )


SLACK_BYTES = 128 * 1024 * 1024
SLACK_SHARE = 0.1
"""By how much memory in use may differ from what was planned: libraries, fragments, other pages."""


def settled_bytes(plan: MemoryPlan, grown_bytes: int, *, is_cache_taken: bool) -> int:
    """Return the claim of a model that is loaded: its plan's, or more if it took more in truth.

    Less is no reason to claim less: the largest step is still to come.
    """
    fixed_bytes = grown_bytes - (plan.kv_bytes if is_cache_taken else 0)
    planned_bytes = plan.weight_bytes + plan.workspace_bytes
    excess_bytes = fixed_bytes - planned_bytes
    if excess_bytes <= max(SLACK_BYTES, SLACK_SHARE * planned_bytes):
        return plan.memory_bytes
    return plan.memory_bytes + excess_bytes


@dataclass(frozen=True, slots=True)
class StepShape:
    """The largest step of a model, in the numbers that its temporary tensors depend on."""

    step_tokens: int
    mask_tokens: int
    """How many of a prompt's tokens attend at once, where a mask is made for them."""
    max_in_flight: int
    hidden_size: int
    intermediate_size: int
    vocabulary_size: int
    context_tokens: int
    item_bytes: int


def workspace_bytes(shape: StepShape) -> int:
    """Estimate the temporary tensors of one step.

    Activations: some eight rows of the hidden size and three of the feed-forward's are alive at
    once. Sampling: the logits, in float and double, sorted and summed. Attention: one chunk's
    mask, as flags and as numbers.
    """
    num_tokens = shape.step_tokens + shape.max_in_flight
    activations = num_tokens * (8 * shape.hidden_size + 3 * shape.intermediate_size)
    sampling = shape.max_in_flight * shape.vocabulary_size * 32
    mask = shape.mask_tokens * shape.context_tokens
    return activations * shape.item_bytes + sampling + mask * (1 + shape.item_bytes)
