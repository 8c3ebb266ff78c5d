"""Prompt attention by torch's own kernel for sequences of many lengths (FlashAttention).

What that kernel takes has changed from one torch to the next, so it is asked, not guessed from a
version. It knows no cache: keys and values come gathered, one sequence behind the other. (Its
paged form wants blocks of 256 tokens, and is wrong with divided keys: pytorch#194167.)
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuron_agent.engine.cuda.paged_attention import Pages, PrefillStep

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256

UNDIVIDED = {"enable_gqa": True, "num_splits": 1}
"""Asked for where the kernel takes them. Older ones share keys among heads and leave them whole
without being told. Undivided, a sequence gives the same numbers alone and in a crowd."""


class VarlenPrefill:
    """A PrefillAttention around `kernel`, called as torch's `varlen_attn` is."""

    def __init__(self, kernel: Callable[..., Any]) -> None:
        taken = inspect.signature(kernel).parameters
        self._kernel = kernel
        self._options = {name: value for name, value in UNDIVIDED.items() if name in taken}

    def suits(self, pages: Pages) -> bool:
        """Whether the kernel is made for such keys and values."""
        size = pages.keys.shape[-1]
        return (
            pages.keys.dtype in DTYPES
            and size == pages.values.shape[-1]
            and size <= LARGEST_HEAD
            and size % 8 == 0
        )

    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        step: PrefillStep,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """query [n, H, D]; keys and values [N, Hkv, D] -> [n, H, D]."""
        out: Tensor = self._kernel(
            query,
            keys,
            values,
            step.query_offsets,
            step.key_offsets,
            step.most_queries,
            step.most_keys,
            scale=scale,
            # To the left of a token so many, to its right none; -1 is without end.
            window_size=(-1 if window is None else window - 1, 0),
            **self._options,
        )
        return out


def find_varlen() -> VarlenPrefill | None:
    """Return the kernel of this torch; None if it has none that can do scales and windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    taken = inspect.signature(varlen_attn).parameters
    return VarlenPrefill(varlen_attn) if {"scale", "window_size"} <= taken.keys() else None
