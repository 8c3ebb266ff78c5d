"""How a piece of a prompt attends to its sequence's keys on a CPU, exactly.

In bfloat16 by products of a few rows at a time: torch's fused attention computes at a quarter of
the speed of such products, and takes about twice as long as all of this. In float32 the scores
would leave the processor's cache, and the fused one is as good. It knows one sequence, one layer.
"""

from collections.abc import MutableMapping
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 64
"""Tokens whose scores are computed together. Measured: 32 and 256 are slower, 128 is as good."""

ROUND = 32
"""Numbers of rows and of keys are multiples of it, those of a product. oneDNN makes code for each
size it meets, which takes longer than most products do: there must be few."""

Masks = MutableMapping[tuple[int, int, int | None], Tensor | None]
"""What one layer of a step has made and the next may use."""


def filled_up(num_tokens: int) -> int:
    """Return the next multiple of `ROUND`."""
    return -(-num_tokens // ROUND) * ROUND


def attend_prompt(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    num_keys: int,
    scale: float,
    window: int | None,
    masks: Masks,
) -> Tensor:
    """query [n, H, D], keys [Hkv, C, D] and values [Hkv, C, Dv] -> [n, H, Dv].

    The last row's own key is number `num_keys`. There is room for that number filled up, and any
    numbers are in it, but numbers. Each row sees itself and what stands before it, `window` tokens
    in all if there is one. Heads that share keys are rows of one product, or a dimension of their
    own: keys are never copied.
    """
    if query.dtype == torch.bfloat16 and len(query) >= ROUND:
        return _by_rows(query, keys, values, num_keys, scale, window)
    return _fused(query, keys[:, :num_keys], values[:, :num_keys], scale, window, masks)


# --- bfloat16 ------------------------------------------------------------------------------------


def _by_rows(
    query: Tensor, keys: Tensor, values: Tensor, num_keys: int, scale: float, window: int | None
) -> Tensor:
    num_rows, num_heads, size = query.shape
    num_shared, num_groups = len(keys), num_heads // len(keys)
    folded = query.new_zeros(num_shared, filled_up(num_rows), num_groups, size)
    folded[:, :num_rows] = query.view(num_rows, num_shared, num_groups, size).transpose(0, 1)
    out = folded.new_empty(*folded.shape[:3], values.shape[2])  # [Hkv, n filled up, G, Dv]
    for top in range(0, num_rows, ROWS):
        heads = folded[:, top : top + ROWS]  # [Hkv, ROWS or fewer, G, D]
        position = num_keys - num_rows + top  # of the first row
        first = 0 if window is None else max(0, position + 1 - window) // ROUND * ROUND
        end = filled_up(min(position + ROWS, num_keys))
        scores = heads.new_empty(num_shared, heads.shape[1] * num_groups, end - first)
        seen = keys[:, first:end].transpose(1, 2)
        torch.baddbmm(scores, heads.flatten(1, 2), seen, beta=0, alpha=scale, out=scores)
        by_row = scores.view(*heads.shape[:3], -1)
        _hide(by_row, position - first, window)
        shares = scores.softmax(-1)
        torch.bmm(shares, values[:, first:end], out=out[:, top : top + ROWS].flatten(1, 2))
    return out[:, :num_rows].transpose(0, 1).flatten(1, 2)


def _hide(scores: Tensor, own: int, window: int | None) -> None:
    """scores [Hkv, rows, G, keys], where `own` is the number of the first row's own key: make
    minus infinity of what a row does not see."""
    rows, num_keys = scores.shape[1], scores.shape[3]
    later = _later(num_keys - own, scores.dtype)
    scores[..., own:].add_(later[:rows])
    if window is None:
        return
    past = _past(max(own + 1 - window, 1 - ROWS), scores.dtype)
    seen = min(past.shape[2], num_keys)
    scores[..., :seen].add_(past[:rows, :, :seen])


@lru_cache(maxsize=2 * ROWS)
def _later(num_columns: int, dtype: torch.dtype) -> Tensor:
    """[ROWS, 1, num_columns], to be added to scores: minus infinity for what stands after a row,
    where the first column is the first row's own."""
    later = torch.ones(ROWS, num_columns, dtype=torch.bool).triu(1)
    return _minus_infinity(later, dtype).unsqueeze(1)


@lru_cache(maxsize=2 * ROWS)
def _past(num_past: int, dtype: torch.dtype) -> Tensor:
    """[ROWS, 1, m]: minus infinity for what rows see no more: `num_past` of the first tokens in
    the first row, one more in each further row; none where that is negative."""
    past = torch.ones(ROWS, num_past + ROWS - 1, dtype=torch.bool).tril(num_past - 1)
    return _minus_infinity(past, dtype).unsqueeze(1)


# --- other dtypes --------------------------------------------------------------------------------


def _fused(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, masks: Masks
) -> Tensor:
    num_rows, num_heads, size = query.shape
    num_shared = len(keys)
    # Keys before every row's window are left out; a window inside the piece needs a mask.
    first = 0 if window is None else max(0, keys.shape[1] - num_rows + 1 - window)
    keys, values = keys[:, first:].unsqueeze(1), values[:, first:].unsqueeze(1)
    wanted = num_rows, keys.shape[2], window
    if wanted not in masks:
        masks[wanted] = _mask(*wanted, query.dtype)
    num_groups = num_heads // num_shared
    out = F.scaled_dot_product_attention(
        query.view(num_rows, num_shared, num_groups, size).permute(1, 2, 0, 3),  # [Hkv, G, n, D]
        keys.expand(-1, num_groups, -1, -1),
        values.expand(-1, num_groups, -1, -1),
        attn_mask=masks[wanted],
        is_causal=masks[wanted] is None,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3).reshape(num_rows, num_heads, -1)


def _mask(num_rows: int, num_keys: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """Return what to add to the scores [n, N]; None for plain causality.

    It is made as numbers: attention would turn flags into numbers in every layer.
    """
    offset = num_keys - num_rows
    if window is not None and num_keys <= window:
        window = None  # nobody's window ends within these keys
    if offset == 0 and window is None:
        return None
    may_look = torch.ones(num_rows, num_keys, dtype=torch.bool).tril(offset)
    if window is not None:
        may_look = may_look.triu(offset - window + 1)
    return _minus_infinity(~may_look, dtype)


def _minus_infinity(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where `hidden`, 0 elsewhere."""
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
