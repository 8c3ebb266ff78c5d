"""Our attention inside transformers' forward: each sequence attends to its own cache, exactly.

A step packs pieces of many sequences into one row of tokens. transformers computes the layers;
where a layer attends, it calls `attend_packed`, which finds the step's context in this thread and
goes through the sequences one by one. It knows no request and no sampling.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from neuron_agent.engine.kv_slots import KvSlots
from neuron_agent.scheduling.batch import Chunk

NAME = "cortex_packed"

REFUSED_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "sliding_window")
"""What other attentions take and ours does not do. Leaving one out silently would be wrong."""

_step = threading.local()


class UnsupportedAttention(Exception):
    """The model's attention needs something that ours does not do."""


@dataclass(frozen=True, slots=True)
class StepContext:
    cache: KvSlots
    chunks: tuple[Chunk, ...]


@contextmanager
def step_context(context: StepContext) -> Iterator[None]:
    """Make `context` the one that attention in this thread works on."""
    _step.context = context
    try:
        yield
    finally:
        del _step.context


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend for one layer. query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D].

    Raises UnsupportedAttention if the model asks for what is not done here.
    """
    asked = [name for name in REFUSED_ARGUMENTS if arguments.get(name) is not None]
    if asked or attention_mask is not None:
        raise UnsupportedAttention(f"attention with {', '.join(asked) or 'a mask'}")
    context: StepContext = _step.context
    layer: int = module.layer_idx  # type: ignore[assignment]  # set by every attention layer
    outputs, row = [], 0
    for chunk in context.chunks:
        rows = slice(row, row + len(chunk.token_ids))
        keys, values = context.cache.append(chunk, layer, key[0, :, rows], value[0, :, rows])
        outputs.append(_attend(query[0, :, rows], keys, values, chunk.start, scaling))
        row = rows.stop
    return torch.cat(outputs).unsqueeze(0), None


def _attend(query: Tensor, keys: Tensor, values: Tensor, start: int, scale: float | None) -> Tensor:
    """query [H, n, D], keys and values [Hkv, start + n, D] -> [n, H, D].

    Heads that share keys are a dimension of their own, so that keys are never copied per head.
    """
    num_heads, num_tokens, head_size = query.shape
    groups = query.view(keys.shape[0], -1, num_tokens, head_size)  # [Hkv, G, n, D]
    if num_tokens == 1:
        # One token sees everything: the heads of a group are as good as a row of queries.
        folded = groups.transpose(1, 2)  # [Hkv, 1, G, D]
        out = F.scaled_dot_product_attention(
            folded, keys.unsqueeze(1), values.unsqueeze(1), scale=scale
        )
        return out.reshape(1, num_heads, -1)
    num_groups = groups.shape[1]
    out = F.scaled_dot_product_attention(
        groups,
        keys.unsqueeze(1).expand(-1, num_groups, -1, -1),
        values.unsqueeze(1).expand(-1, num_groups, -1, -1),
        attn_mask=_causal_mask(num_tokens, start, query.device) if start else None,
        is_causal=start == 0,
        scale=scale,
    )  # [Hkv, G, n, D]
    return out.permute(2, 0, 1, 3).reshape(num_tokens, num_heads, -1)


def _causal_mask(num_tokens: int, start: int, device: torch.device) -> Tensor:
    """[n, start + n], true where a token may look: at itself and what came before it."""
    return torch.ones(num_tokens, start + num_tokens, dtype=torch.bool, device=device).tril(start)


def register() -> None:
    """Tell transformers about this attention, and that it needs no mask. Idempotent."""
    AttentionInterface.register(NAME, attend_packed)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_arguments: Any, **_named: Any) -> None:
    return None
