"""From files on this host to an engine that has generated a token.

1. Check: options, config, weight headers; refuse what cannot work or does not fit, unread.
2. Read: the weights become a model on its device; quantise it if that is asked for.
3. Prepare: choose the forward that computes this model rightly; size the KV cache.
4. Warm: the canary generates a token through the engine as any request would.
5. Settle: compare what was claimed with what is used.

It fetches nothing, and it does not enter claims into the memory books: the device does.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import structlog
import torch
from torch import nn
from transformers import PreTrainedModel

from neuron_agent.devices.channel import LoadModel, Sampling, Submit
from neuron_agent.engine.engine import Engine, EngineLimits
from neuron_agent.engine.forwards.choice import choose_forward, vocabulary_size
from neuron_agent.engine.forwards.linear import is_bfloat16_fast
from neuron_agent.engine.loading.fitting import check_fits, check_will_fit
from neuron_agent.engine.loading.needs import measured_needs, needs_by_config, weight_bytes_of
from neuron_agent.engine.loading.progress import Progress, Stage, gauge_for, watching
from neuron_agent.engine.loading.sizing import MemoryPlan, settled_bytes
from neuron_agent.engine.loading.weights import WeightSource, open_source
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.engine.sampling.grammar import GrammarCompiler, read_vocabulary
from neuron_agent.protocol import IN_SITU_QUANTS, ErrorCode
from neuron_agent.scheduling.request import FinishReason

log = structlog.get_logger(__name__)

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
CANARY_IDS = (1, 2, 3)
CANARY_TOKENS = 2  # one from the prefill, one from the cache


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a load needs of its device: where, how much is free (asked anew), and the clock."""

    device: torch.device
    free_bytes: Callable[[], int]
    clock: Callable[[], float]
    progress: Progress
    used_bytes: Callable[[], int] | None = None
    """What the process has in use there, as the system counts it; None where nobody counts."""


def load_engine(command: LoadModel, context: LoadContext) -> Engine:
    """Load a model. Raises LoadRefused where it cannot work, else what torch raises."""
    _check_options(command)
    dtype = choose_dtype(command, context.device)
    source = open_source(command, context.device)
    quant = _quantisation(command, source)
    check_will_fit(
        lambda c: needs_by_config(c, source, context.device, dtype, _quantisation(c, source)),
        command,
        context.free_bytes(),
    )
    grammars = GrammarCompiler(partial(read_vocabulary, Path(command.folder)))
    grammars.prepare()
    try:
        return _load(command, context, source, dtype, quant, grammars)
    except BaseException:
        grammars.close()
        raise


def _load(
    command: LoadModel,
    context: LoadContext,
    source: WeightSource,
    dtype: torch.dtype,
    quant: str | None,
    grammars: GrammarCompiler,
) -> Engine:
    used_bytes = context.used_bytes() if context.used_bytes else 0
    total = source.checkpoint.file_bytes
    gauge = gauge_for(context.device, file_bytes=total, weight_bytes=source.weight_bytes(dtype))
    with watching(gauge, Stage("reading", 0.0, 80.0, 0, total), context.progress):
        model = _read(source, context, dtype, quant)
    weight_bytes = weight_bytes_of(model)  # while no layer is laid out in a form of its own
    # Mapped weights are read here in truth, by the first pass through them.
    with watching(gauge, Stage("preparing", 80.0, 95.0, total, total), context.progress):
        chosen = choose_forward(model, dtype, quant)
    needs = measured_needs(command, model, weight_bytes, chosen.kv_token_bytes)
    plan = check_fits(needs, context.free_bytes())
    context.progress("warming", 95.0, total, total)
    chosen.forward.reserve(plan.kv_tokens)
    limits = _limits(command, model, plan, dtype, quant or source.quant)
    engine = Engine(
        command.model_id,
        chosen.forward,
        limits,
        clock=context.clock,
        fresh_seed=lambda: secrets.randbits(64),
        grammars=grammars,
    )
    chosen.forward.warm_up(command.max_in_flight)
    run_canary(engine)
    engine.limits = _settled(limits, plan, context, used_bytes)
    return engine


# --- 1. check ----------------------------------------------------------------------------------


def _check_options(command: LoadModel) -> None:
    if command.max_in_flight < 1 or (command.max_context is not None and command.max_context < 1):
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION, "max_context and max_in_flight must be at least 1"
        )


def _quantisation(command: LoadModel, source: WeightSource) -> str | None:
    """Return what to quantise the weights to, None to leave them as they are read.

    The name of a GGUF's quantisation chose the file already; that of a checkpoint's own method
    asks for what is there. Raises LoadRefused.
    """
    if command.quant is None:
        return None
    if command.quant.lower() in IN_SITU_QUANTS:
        if source.checkpoint.is_quantised:
            raise LoadRefused(
                ErrorCode.UNSUPPORTED_OPTION,
                f"the weights are quantised by {source.quant} already",
                hint="load them without quant",
            )
        return command.quant.lower()
    if source.is_gguf or command.quant.lower() == source.quant:
        return None
    raise LoadRefused(
        ErrorCode.QUANT_NOT_FOUND,
        f"there is no quantisation {command.quant!r} of this model",
        hint=f"there is {', '.join(IN_SITU_QUANTS)}, or none",
    )


def choose_dtype(command: LoadModel, device: torch.device) -> torch.dtype:
    """Return the dtype asked for, else the best for the device. Raises LoadRefused."""
    if command.dtype is not None:
        if command.dtype not in DTYPES:
            raise LoadRefused(
                ErrorCode.UNSUPPORTED_OPTION,
                f"dtype {command.dtype!r} is not known",
                hint=f"one of {', '.join(DTYPES)}",
            )
        return DTYPES[command.dtype]
    return torch.bfloat16 if is_bfloat16_fast(device) else torch.float32


# --- 2. read -----------------------------------------------------------------------------------


def _read(
    source: WeightSource, context: LoadContext, dtype: torch.dtype, quant: str | None
) -> PreTrainedModel:
    """Return the model on its device, quantised if it is to be.

    Safetensors that fit the device only as int8 are quantised in the host's memory.
    """
    if quant is None:
        return source.read(context.device, dtype)
    fits_as_read = source.is_gguf or source.weight_bytes(dtype) <= context.free_bytes()
    place = context.device if fits_as_read else torch.device("cpu")
    model = source.read_int8(place, dtype)
    nn.Module.to(model, context.device)
    return model


# --- 3. prepare --------------------------------------------------------------------------------


def _limits(
    command: LoadModel,
    model: PreTrainedModel,
    plan: MemoryPlan,
    dtype: torch.dtype,
    quant: str | None,
) -> EngineLimits:
    return EngineLimits(
        context_tokens=plan.context_tokens,
        kv_tokens=plan.kv_tokens,
        vocabulary_size=vocabulary_size(model),
        max_in_flight=command.max_in_flight,
        memory_bytes=plan.memory_bytes,
        needed_bytes=plan.needed_bytes,
        dtype=str(dtype).removeprefix("torch."),
        quant=quant,
    )


# --- 4. warm -----------------------------------------------------------------------------------


def run_canary(engine: Engine) -> None:
    """Generate through the engine. Raises LoadRefused if what comes out is no token."""
    ids = [min(token, engine.limits.vocabulary_size - 1) for token in CANARY_IDS]
    engine.add(Submit("canary", engine.model_id, ids, CANARY_TOKENS, [], Sampling(temperature=0.0)))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    if outputs[-1].finish != FinishReason.LENGTH:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"the canary failed: {outputs[-1].error}")


# --- 5. settle ---------------------------------------------------------------------------------


def _settled(
    limits: EngineLimits, plan: MemoryPlan, context: LoadContext, used_before_bytes: int
) -> EngineLimits:
    """Return the limits with a claim that covers what the load took in truth.

    On a GPU the cache is taken whole by now; on a CPU its memory comes as it is used.
    """
    if context.used_bytes is None:
        return limits
    grown_bytes = context.used_bytes() - used_before_bytes
    is_cache_taken = context.device.type == "cuda"
    claim_bytes = settled_bytes(plan, grown_bytes, is_cache_taken=is_cache_taken)
    if claim_bytes == plan.memory_bytes:
        return limits
    extra_bytes = claim_bytes - plan.memory_bytes
    log.warning("claim_corrected", planned=plan.memory_bytes, claim=claim_bytes, grown=grown_bytes)
    return replace(limits, memory_bytes=claim_bytes, needed_bytes=limits.needed_bytes + extra_bytes)
