"""Our attention inside transformers' forward: each sequence attends to its own cache, exactly.

A step packs pieces of many sequences into one row of tokens. transformers computes the layers;
where a layer attends, it calls `attend_packed`, which finds the step's cache in this thread and
hands the layer over to it. It knows no request and no sampling, and not how a cache attends.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from neuron_agent.engine.forwards.kv_cache import KvCache

NAME = "cortex_packed"

REFUSED_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias")
"""What other attentions take and ours does not do. Leaving one out silently would be wrong."""

_step = threading.local()


class UnsupportedAttention(Exception):
    """The model's attention needs something that ours does not do."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """The cache, begun for this step. `windows` fills with what each layer asked for."""

    cache: KvCache
    windows: dict[int, int | None] = field(default_factory=dict)


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
    sliding_window: int | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend for one layer. query [1, H, T, D], key and value [1, Hkv, T, D] -> [1, T, H, D].

    Raises UnsupportedAttention if the model asks for what is not done here.
    """
    asked = [name for name in REFUSED_ARGUMENTS if arguments.get(name) is not None]
    if asked or attention_mask is not None:
        raise UnsupportedAttention(f"attention with {', '.join(asked) or 'a mask'}")
    if not getattr(module, "is_causal", True):
        raise UnsupportedAttention("attention that looks ahead")
    context: StepContext = _step.context
    layer: int = module.layer_idx  # type: ignore[assignment]  # set by every attention layer
    context.windows[layer] = sliding_window
    out = context.cache.attend(
        layer,
        query[0].transpose(0, 1),  # [T, H, D]
        key[0].transpose(0, 1),  # [T, Hkv, D]
        value[0].transpose(0, 1),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window,
    )
    return out.unsqueeze(0), None


def register() -> None:
    """Tell transformers about this attention, and that it needs no mask. Idempotent."""
    AttentionInterface.register(NAME, attend_packed)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_arguments: Any, **_named: Any) -> None:
    return None
