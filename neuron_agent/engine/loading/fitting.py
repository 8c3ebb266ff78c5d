"""Whether a model fits its device, and what to say if it does not: numbers, and what would fit.

It decides by the sums of `sizing` and asks for needs by a call; it reads no file and no device.
"""

from collections.abc import Callable, Iterator

import msgspec

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.loading.sizing import DoesNotFit, MemoryPlan, ModelNeeds, plan_memory
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode

SMALLER_CONTEXTS = (2048, 1024, 512, 256)
"""What a hint may propose: a model that takes a few lines of text is of some use still."""

NeedsOf = Callable[[LoadModel], ModelNeeds]


def check_fits(needs: ModelNeeds, free_bytes: int) -> MemoryPlan:
    """Return how the memory is to be used. Raises LoadRefused: does_not_fit."""
    plan = plan_memory(needs, free_bytes)
    if isinstance(plan, DoesNotFit):
        raise _does_not_fit(plan, "unload another model, or load this one with a smaller context")
    return plan


def check_will_fit(needs_of: NeedsOf, command: LoadModel, free_bytes: int) -> None:
    """Raise LoadRefused if a load will not fit, with options by which it would.

    `needs_of` says what any command like this one needs; it may raise LoadRefused.
    """
    plan = plan_memory(needs_of(command), free_bytes)
    if isinstance(plan, DoesNotFit):
        options = [words for words, other in _others(command) if _fits(needs_of, other, free_bytes)]
        hint = "unload another model"
        if options:
            hint += f", or load this one with {options[0]}: that would fit now"
        raise _does_not_fit(plan, hint)


def _others(command: LoadModel) -> Iterator[tuple[str, LoadModel]]:
    """Yield commands that need less, the least painful first."""
    change = msgspec.structs.replace
    if command.quant is None:
        yield "quant int8", change(command, quant="int8")
    for tokens in SMALLER_CONTEXTS:
        if command.max_context is None or tokens < command.max_context:
            yield f"max_context {tokens}", change(command, max_context=tokens)
    if command.quant is None:
        least = SMALLER_CONTEXTS[-1]
        smallest = change(command, quant="int8", max_context=least)
        yield f"quant int8 and max_context {least}", smallest


def _fits(needs_of: NeedsOf, command: LoadModel, free_bytes: int) -> bool:
    try:
        return isinstance(plan_memory(needs_of(command), free_bytes), MemoryPlan)
    except LoadRefused:
        return False


def _does_not_fit(plan: DoesNotFit, hint: str) -> LoadRefused:
    return LoadRefused(
        ErrorCode.DOES_NOT_FIT,
        f"the model needs {plan.needed_bytes} bytes on the device and {plan.free_bytes} are free",
        hint=hint,
        needed_bytes=plan.needed_bytes,
        free_bytes=plan.free_bytes,
    )
