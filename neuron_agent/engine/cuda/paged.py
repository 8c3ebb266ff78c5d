"""Puts the CUDA path together: which attention a layer gets, and what wraps a forward.

A fast kernel is tried on a few random numbers of the layer's own shape before it may serve; plain
attention takes its place where it cannot be built or is wrong. It knows no batch and no weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import structlog
import torch
from torch import Tensor

from neuron_agent.engine.cuda.graphs import Capturable, CudaCapture, GraphedForward
from neuron_agent.engine.cuda.paged_attention import (
    AttentionKernels,
    DecodeAttention,
    DecodeStep,
    Pages,
    PrefillAttention,
    PrefillStep,
    plain_decode,
    plain_prefill,
)
from neuron_agent.engine.cuda.paged_cache import PagedCache
from neuron_agent.engine.cuda.varlen_prefill import find_varlen
from neuron_agent.engine.forwards.forward import Forward

log = structlog.get_logger(__name__)

TRIAL_LENGTHS = (3, 70)
"""Of the trial's two sequences: within a block, and beyond one of the usual size."""

TRIAL_NEW_TOKENS = (2, 5)
TRIAL_WINDOW = 33
TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""For means of numbers around 1; ours may differ from plain attention by the dtype's rounding."""


def new_cuda_cache(device: torch.device) -> PagedCache:
    """Return an empty cache for a GPU, with the fastest attention that works there."""
    return PagedCache(device, FastKernels(_find_decode(device), find_varlen()))


def with_graphs(forward: Forward) -> Forward:
    """Return a forward that replays its decode steps from CUDA graphs, if this one allows it."""
    if isinstance(forward, Capturable) and isinstance(forward.cache, PagedCache):
        return GraphedForward(forward, forward.cache, CudaCapture())
    return forward


def _find_decode(device: torch.device) -> "FastDecode | None":
    try:
        # Only where there is a GPU: importing Triton takes time, and CPU hosts may lack it.
        from neuron_agent.engine.cuda.triton_decode import TritonDecode
    except ImportError:
        log.warning("no_triton", consequence="decode attention is slow")
        return None
    return TritonDecode(torch.cuda.get_device_properties(device).multi_processor_count)


# --- which attention ---------------------------------------------------------------------------


class FastDecode(DecodeAttention, Protocol):
    def suits(self, pages: Pages) -> bool:
        """Whether it is made for such pages."""


class FastPrefill(PrefillAttention, Protocol):
    def suits(self, pages: Pages) -> bool:
        """Whether it is made for such keys and values."""


class FastKernels:
    """Chooses a layer's attention. Layers of one shape are tried once."""

    def __init__(self, decode: FastDecode | None, prefill: FastPrefill | None) -> None:
        self._decode = decode
        self._prefill = prefill
        self._chosen: dict[tuple[object, ...], AttentionKernels] = {}

    def __call__(self, pages: Pages, num_heads: int) -> AttentionKernels:
        shape = (num_heads, pages.keys.dtype, *pages.keys.shape[1:], pages.values.shape[-1])
        if shape not in self._chosen:
            trial = _Trial.like(pages, num_heads)
            self._chosen[shape] = AttentionKernels(
                self._tried_decode(pages, trial), self._tried_prefill(pages, trial)
            )
        return self._chosen[shape]

    def _tried_decode(self, pages: Pages, trial: "_Trial") -> DecodeAttention:
        fast = self._decode
        if fast is None or not fast.suits(pages):
            return plain_decode
        exact = partial(trial.decode, plain_decode)
        return fast if _is_right(partial(trial.decode, fast), exact) else plain_decode

    def _tried_prefill(self, pages: Pages, trial: "_Trial") -> PrefillAttention:
        fast = self._prefill
        if fast is None or not fast.suits(pages):
            return plain_prefill
        exact = partial(trial.prefill, plain_prefill)
        return fast if _is_right(partial(trial.prefill, fast), exact) else plain_prefill


@dataclass(frozen=True, slots=True)
class _Trial:
    """Two sequences of random numbers, in pages and one behind the other."""

    query: Tensor  # [n, H, D]
    pages: Pages
    decode_step: DecodeStep
    prefill_step: PrefillStep

    @classmethod
    def like(cls, pages: Pages, num_heads: int) -> "_Trial":
        device, size = pages.keys.device, pages.block_tokens
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, pages.keys.dtype)

        def integers(numbers: object) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=device)

        width = -(-max(TRIAL_LENGTHS) // size)
        num_blocks = width * len(TRIAL_LENGTHS)
        starts = tuple(end - new for end, new in zip(TRIAL_LENGTHS, TRIAL_NEW_TOKENS, strict=True))
        return cls(
            query=random(sum(TRIAL_NEW_TOKENS), num_heads, pages.keys.shape[-1]),
            pages=Pages(
                random(num_blocks, *pages.keys.shape[1:]),
                random(num_blocks, *pages.values.shape[1:]),
            ),
            decode_step=DecodeStep(
                table=integers(range(num_blocks)).view(len(TRIAL_LENGTHS), width).flip(1),
                slots=integers([1, 0]),
                lengths=integers(TRIAL_LENGTHS),
            ),
            prefill_step=PrefillStep(
                starts,
                TRIAL_LENGTHS,
                integers(list(accumulate(TRIAL_NEW_TOKENS, initial=0))),
                integers(list(accumulate(TRIAL_LENGTHS, initial=0))),
                None,
            ),
        )

    def decode(self, attention: DecodeAttention, window: int | None) -> Tensor:
        query = self.query[: len(TRIAL_LENGTHS)]
        return attention(query, self.pages, self.decode_step, query.shape[-1] ** -0.5, window)

    def prefill(self, attention: PrefillAttention, window: int | None) -> Tensor:
        keys, values = (flat[: sum(TRIAL_LENGTHS)] for flat in self.pages.flat)
        scale = self.query.shape[-1] ** -0.5
        return attention(self.query, keys, values, self.prefill_step, scale, window)


def _is_right(fast: Callable[[int | None], Tensor], exact: Callable[[int | None], Tensor]) -> bool:
    """Whether both give the same, with and without a window."""
    for window in (None, TRIAL_WINDOW):
        wanted = exact(window)
        try:
            error = float((fast(window) - wanted).abs().max())
        except Exception as failure:
            # Kernels fail to build in many ways. A broken device shows again in what follows.
            log.warning("attention_kernel_failed", error=repr(failure))
            return False
        if not error <= TOLERANCES[wanted.dtype]:
            log.warning("attention_kernel_wrong", error=error, window=window)
            return False
    return True
