"""Torch's kernel is called so that it does what plain attention does, as it is documented."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.cuda.paged_attention import Pages, PrefillStep, plain_prefill
from neuron_agent.engine.cuda.varlen_prefill import VarlenPrefill, find_varlen

STARTS, ENDS = (0, 9, 4), (6, 10, 17)


def documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """A token sees as many as the window says to its left and right, ends aligned."""
    left, right = window_size
    assert (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max())) == (max_q, max_k)
    outputs = []
    spans = zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True)
    for (first_query, end_query), (first_key, end_key) in spans:
        own, keys = query[first_query:end_query], key[first_key:end_key]
        shared = query.shape[1] // key.shape[1]
        scores = torch.einsum("nhd,mhd->hnm", own, keys.repeat_interleave(shared, 1)) * scale
        at = torch.arange(len(own))[:, None] + len(keys) - len(own)
        distance = torch.arange(len(keys))[None, :] - at  # [n, m]
        hidden = distance > right
        if left >= 0:
            hidden |= distance < -left
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        seen = value[first_key:end_key].repeat_interleave(shared, 1)
        outputs.append(torch.einsum("hnm,mhd->nhd", weights, seen))
    return torch.cat(outputs)


def newer(
    *arguments: Any, enable_gqa: bool = False, num_splits: int | None = None, **named: Any
) -> Tensor:
    """A kernel that does not share keys, and divides them, unless told otherwise."""
    assert enable_gqa
    assert num_splits == 1
    return documented(*arguments, **named)


def step() -> PrefillStep:
    counts = torch.tensor([end - start for start, end in zip(STARTS, ENDS, strict=True)])
    queries = torch.cat([torch.zeros(1), counts.cumsum(0)]).int()
    keys = torch.cat([torch.zeros(1), torch.tensor(ENDS).cumsum(0)]).int()
    return PrefillStep(STARTS, ENDS, queries, keys, None)


@pytest.mark.parametrize("kernel", [documented, newer])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_kernels_old_and_new_are_asked_for_causal_attention(
    kernel: Any, window: int | None
) -> None:
    torch.manual_seed(2)
    query, keys, values = torch.randn(20, 4, 8), torch.randn(33, 2, 8), torch.randn(33, 2, 8)
    ours = VarlenPrefill(kernel)(query, keys, values, step(), 0.3, window)
    torch.testing.assert_close(ours, plain_prefill(query, keys, values, step(), 0.3, window))


def test_this_torch_has_such_a_kernel() -> None:
    assert find_varlen() is not None


@pytest.mark.parametrize(
    ("dtype", "key_size", "value_size", "suits"),
    [
        (torch.bfloat16, 128, 128, True),
        (torch.float16, 80, 80, True),
        (torch.float32, 128, 128, False),
        (torch.bfloat16, 192, 128, False),
        (torch.bfloat16, 512, 512, False),
        (torch.bfloat16, 20, 20, False),
    ],
)
def test_it_is_asked_only_for_what_it_is_made_for(
    dtype: torch.dtype, key_size: int, value_size: int, suits: bool
) -> None:
    pages = Pages(
        torch.zeros(1, 4, 1, key_size, dtype=dtype), torch.zeros(1, 4, 1, value_size, dtype=dtype)
    )
    assert VarlenPrefill(documented).suits(pages) is suits
