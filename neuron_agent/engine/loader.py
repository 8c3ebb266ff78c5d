"""From a local Hugging Face folder to an engine that has generated a token.

1. Check: options, config, weight headers; refuse what cannot work or does not fit, unread.
2. Read: transformers builds the model on its device.
3. Prepare: choose the forward that computes this model rightly; size the KV cache.
4. Warm: the canary generates a token through the engine as any request would.

It fetches nothing, and it does not enter claims into the memory books: the device does.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer

from neuron_agent.devices.channel import LoadModel, Sampling, Submit
from neuron_agent.engine.attention import UnsupportedAttention
from neuron_agent.engine.checkpoint import read_checkpoint
from neuron_agent.engine.engine import Engine, EngineLimits
from neuron_agent.engine.forward import Forward, PackedForward, SequenceFailed, SlowLane
from neuron_agent.engine.needs import kv_token_bytes_of, measured_needs, needs_by_config
from neuron_agent.engine.progress import Progress, Stage, gauge_for, watching
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.engine.selfcheck import agree, forward_logits, probe_sequences, reference_logits
from neuron_agent.engine.sizing import DoesNotFit, MemoryPlan, ModelNeeds, plan_memory
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.request import FinishReason

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
GENERATIVE_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
CANARY_IDS = (1, 2, 3)
CANARY_TOKENS = 2  # one from the prefill, one from the cache


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What a load needs of its device: where, how much is free (asked anew), and the clock."""

    device: torch.device
    free_bytes: Callable[[], int]
    clock: Callable[[], float]
    progress: Progress


def load_engine(command: LoadModel, context: LoadContext) -> Engine:
    """Load a model. Raises LoadRefused where it cannot work, else what torch raises."""
    _check_options(command)
    dtype = choose_dtype(command, context.device)
    checkpoint = read_checkpoint(Path(command.folder))
    config = _read_config(command.folder)
    _check_fits(needs_by_config(command, checkpoint, config, dtype), context.free_bytes())
    total = checkpoint.file_bytes
    gauge = gauge_for(context.device, checkpoint, dtype)
    with watching(gauge, Stage("reading", 0.0, 80.0, 0, total), context.progress):
        model = _read_model(command.folder, context.device, dtype)
    # Mapped weights are read here in truth, by the first pass through them.
    with watching(gauge, Stage("preparing", 80.0, 95.0, total, total), context.progress):
        forward, kv_token_bytes = choose_forward(model, dtype)
    needs = measured_needs(command, model, kv_token_bytes)
    plan = _check_fits(needs, context.free_bytes())
    context.progress("warming", 95.0, total, total)
    engine = Engine(
        command.model_id,
        forward,
        _limits(command, model, plan, dtype),
        clock=context.clock,
        fresh_seed=lambda: secrets.randbits(64),
    )
    run_canary(engine)
    return engine


# --- 1. check ----------------------------------------------------------------------------------


def _check_options(command: LoadModel) -> None:
    if command.quant is not None:
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION,
            f"quantisation {command.quant!r} is not supported yet",
            hint="load without quant",
        )
    if command.max_in_flight < 1 or (command.max_context is not None and command.max_context < 1):
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION, "max_context and max_in_flight must be at least 1"
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
    # Without AMX tiles a CPU emulates bfloat16: slower than float32, and less exact.
    is_bfloat16_fast = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if is_bfloat16_fast else torch.float32


def _read_config(folder: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsupported("transformers does not know this kind of model") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not _is_generative(config):
        raise _unsupported(f"{config.model_type} is not a causal language model")
    known: PreTrainedConfig = config
    return known


def _is_generative(config: PreTrainedConfig) -> bool:
    """Whether the weights were made to continue text, not to classify, embed or translate it."""
    names = config.architectures or []
    is_named_so = any(name.endswith(GENERATIVE_ENDINGS) for name in names)
    return not config.is_encoder_decoder and (is_named_so or not names)


def _unsupported(message: str) -> LoadRefused:
    return LoadRefused(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        message,
        hint="use a causal language model that transformers supports without remote code",
    )


def _check_fits(needs: ModelNeeds, free_bytes: int) -> MemoryPlan:
    plan = plan_memory(needs, free_bytes)
    if isinstance(plan, DoesNotFit):
        raise LoadRefused(
            ErrorCode.DOES_NOT_FIT,
            f"the model needs {plan.needed_bytes} bytes on the device and {plan.free_bytes} are"
            " free",
            hint="unload another model, or load this one with a smaller max_context",
            needed_bytes=plan.needed_bytes,
            free_bytes=plan.free_bytes,
        )
    return plan


# --- 2. read -----------------------------------------------------------------------------------


def _read_model(folder: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        # To a GPU shard by shard, without a copy of the whole in the host's memory.
        device_map={"": device} if device.type == "cuda" else None,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    model: PreTrainedModel = loaded[0]
    missing_names: set[str] = loaded[1]["missing_keys"]
    if missing_names:
        # transformers would go on with random numbers in their place.
        names = ", ".join(sorted(missing_names)[:3])
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"the weights lack {names}")
    model.train(False).requires_grad_(False)
    return model


# --- 3. prepare --------------------------------------------------------------------------------


def choose_forward(model: PreTrainedModel, dtype: torch.dtype) -> tuple[Forward, int]:
    """Return the fastest forward that computes this model rightly, and its KV bytes a token.

    Raises LoadRefused if the model is broken or none of our forwards is right for it.
    """
    sequences = probe_sequences(_vocabulary_size(model))
    reference = reference_logits(model, sequences)
    if not torch.isfinite(reference).all():
        raise LoadRefused(
            ErrorCode.LOAD_FAILED,
            "the model gives no finite numbers",
            hint="load it with dtype bfloat16 or float32",
        )
    attention_as_loaded = model.config._attn_implementation
    if can_be_packed(model):
        packed = PackedForward(model)
        if _is_right(packed, sequences, reference):
            kv_token_bytes = packed.cache.token_bytes(slot=0)
            _release_probes(packed, sequences)
            return packed, kv_token_bytes
        model.set_attn_implementation(attention_as_loaded)
    slow = SlowLane(model)
    if not _is_right(slow, sequences, reference):
        raise _unsupported(f"{model.config.model_type} cannot be continued from its cache")
    _release_probes(slow, sequences)
    return slow, kv_token_bytes_of(model.config, dtype)


def _is_right(forward: Forward, sequences: list[tuple[int, ...]], reference: Tensor) -> bool:
    try:
        return agree(forward_logits(forward, sequences), reference)
    except UnsupportedAttention:
        return False
    except SequenceFailed as error:
        if isinstance(error.__cause__, TypeError):
            return False  # the model does not take the kind of cache it was given
        raise


def can_be_packed(model: PreTrainedModel) -> bool:
    """Whether every layer is plain attention over all before it, and ours can take its place.

    Positions that are turned by how long the longest sequence of a call is must not share calls.
    """
    layers = DynamicCache(config=model.config).layers
    is_plain = all(type(layer) is DynamicLayer for layer in layers)
    is_alike = not _rotates_by_length(model.config)
    return bool(layers) and is_plain and is_alike and model._supports_attention_backend


def _rotates_by_length(config: PreTrainedConfig) -> bool:
    entry = getattr(config.get_text_config(decoder=True), "rope_parameters", None)
    return any("dynamic" in name or name == "longrope" for name in _rope_types(entry))


def _rope_types(entry: object) -> Iterator[str]:
    """Yield the types in a config's rope entry: one for all layers, or one for each kind."""
    if not isinstance(entry, dict):
        return
    for key, value in entry.items():
        if key in ("rope_type", "type") and isinstance(value, str):
            yield value
        yield from _rope_types(value)


def _release_probes(forward: Forward, sequences: list[tuple[int, ...]]) -> None:
    for slot in range(len(sequences)):
        forward.release(slot)


def _vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the embedding: what a token id may be, whatever the tokenizer says."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def _limits(
    command: LoadModel, model: PreTrainedModel, plan: MemoryPlan, dtype: torch.dtype
) -> EngineLimits:
    return EngineLimits(
        context_tokens=plan.context_tokens,
        kv_tokens=plan.kv_tokens,
        vocabulary_size=_vocabulary_size(model),
        max_in_flight=command.max_in_flight,
        memory_bytes=plan.memory_bytes,
        needed_bytes=plan.needed_bytes,
        dtype=str(dtype).removeprefix("torch."),
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
