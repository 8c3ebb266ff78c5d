"""Chooses the forward that computes a loaded model rightly: the fastest first, each one tried.

fused -> packed -> slow lane. A forward that the model's shape allows is compared with
transformers' own before it may serve. It knows no request and no memory plan.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neuron_agent.engine.forwards.attention import UnsupportedAttention
from neuron_agent.engine.forwards.forward import Forward, PackedForward, SequenceFailed, SlowLane
from neuron_agent.engine.forwards.fused import FusedForward, can_be_fused
from neuron_agent.engine.forwards.kv_cache import KvCache
from neuron_agent.engine.forwards.layer_kinds import attention_windows
from neuron_agent.engine.forwards.selfcheck import (
    agree,
    forward_logits,
    probe_sequences,
    reference_logits,
)
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.engine.loading.needs import kv_token_bytes_of
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.pool import KvLayout


@dataclass(frozen=True, slots=True)
class Chosen:
    forward: Forward
    kv_token_bytes: int
    """Cache bytes of a token over all layers; 0 where nothing grows with the tokens."""


@dataclass(frozen=True, slots=True)
class _Probe:
    """What every candidate has to match."""

    sequences: list[tuple[int, ...]]
    reference: Tensor  # [S, V]
    is_quantised: bool


def choose_forward(model: PreTrainedModel, dtype: torch.dtype, quant: str | None = None) -> Chosen:
    """Return the fastest forward that computes this model rightly, its weights laid out for it.

    Raises LoadRefused if the model is broken or none of our forwards is right for it.
    """
    probe = _probe(model, is_quantised=quant is not None)
    attention_as_loaded = model.config._attn_implementation
    if attention_windows(model) is not None:
        if can_be_fused(model):
            fused = FusedForward(model, _new_cache(model))
            if _is_right(fused, probe):
                fused.settle()
                return _chosen(fused, fused.cache, probe)
        packed = PackedForward(model, _new_cache(model))
        if _is_right(packed, probe) and packed.windows == attention_windows(model):
            packed.settle()
            return _chosen(packed, packed.cache, probe)
        packed.close()
        model.set_attn_implementation(attention_as_loaded)
    slow = SlowLane(model)
    if not _is_right(slow, probe):
        raise _unsupported(f"{model.config.model_type} cannot be continued from its cache")
    _release_probes(slow, probe)
    return Chosen(slow, kv_token_bytes_of(model.config, dtype))


def _new_cache(model: PreTrainedModel) -> KvCache:
    device = model.device
    if device.type == "cuda":
        # Only where there is a GPU: a CPU host need not have what its kernels are made of.
        from neuron_agent.engine.cuda.paged import new_cuda_cache

        return new_cuda_cache(device)
    return SlotCache()


def _chosen(forward: FusedForward | PackedForward, cache: KvCache, probe: _Probe) -> Chosen:
    if not _is_right(forward, probe):
        raise LoadRefused(ErrorCode.LOAD_FAILED, "the weights were not laid out rightly")
    _release_probes(forward, probe)
    return Chosen(_with_graphs(forward), cache.token_bytes)


def _with_graphs(forward: Forward) -> Forward:
    if forward.layout != KvLayout.BLOCKS:
        return forward
    from neuron_agent.engine.cuda.paged import with_graphs

    return with_graphs(forward)


# --- the comparison ----------------------------------------------------------------------------


def _probe(model: PreTrainedModel, *, is_quantised: bool) -> _Probe:
    sequences = probe_sequences(vocabulary_size(model))
    reference = reference_logits(model, sequences)
    if not torch.isfinite(reference).all():
        raise LoadRefused(
            ErrorCode.LOAD_FAILED,
            "the model gives no finite numbers",
            hint="load it with dtype bfloat16 or float32",
        )
    return _Probe(sequences, reference, is_quantised)


def _is_right(forward: Forward, probe: _Probe) -> bool:
    try:
        ours = forward_logits(forward, probe.sequences)
    except UnsupportedAttention:
        return False
    except SequenceFailed as error:
        if isinstance(error.__cause__, TypeError):
            return False  # the model does not take the kind of cache it was given
        raise
    return agree(ours, probe.reference, is_quantised=probe.is_quantised)


def _release_probes(forward: Forward, probe: _Probe) -> None:
    for slot in range(len(probe.sequences)):
        forward.release(slot)


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the embedding: what a token id may be, whatever the tokenizer says."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.num_embeddings)


def _unsupported(message: str) -> LoadRefused:
    return LoadRefused(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        message,
        hint="use a causal language model that transformers supports without remote code",
    )
