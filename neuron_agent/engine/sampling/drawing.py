"""Draws a token from each row's distribution: temperature, top_k, top_p, min_p, and a seed.

A row's draw depends on its own logits, parameters, seed and position alone: the uniform number
comes from (seed, position) and the token from the inverse of the cumulative distribution. So the
same seed gives the same text, whatever else is in the batch. It knows no request and no penalty.

The restrictions follow each other as in transformers (`GenerationMixin`, its order of warpers):
temperature; the `top_k` likeliest tokens; of these the fewest that make up `top_p` of their sum;
of these all that are at least `min_p` times as likely as the likeliest. The likeliest always stays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neuron_agent.engine.sampling.edits import InvalidSampling

SLICE = 256
"""How many of the best tokens a restricted draw looks at first: nearly always enough."""
UNITS = 2**40
"""Where sums must not depend on their order, the likeliest token's weight is this whole number."""
LOW_BITS = 15
BLOCK_TOKENS = 128

_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class DrawParameters:
    """Checked parameters of one request. Raises InvalidSampling on nonsense."""

    temperature: float
    top_p: float
    top_k: int  # 0 = off
    seed: int
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidSampling(f"temperature must be a number from 0 up, not {self.temperature}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InvalidSampling(f"{name} must be from 0 to 1, not {value}")
        if self.top_k < 0:
            raise InvalidSampling(f"top_k must be 0 (off) or more, not {self.top_k}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0

    @property
    def is_restricted(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    def at(self, position: int) -> tuple[float, ...]:
        """Return the numbers of a draw, in the order of `Columns`."""
        return self.temperature, self.top_k, self.top_p, self.min_p, uniform(self.seed, position)


def uniform(seed: int, position: int) -> float:
    """Return a number in (0, 1), the same for the same arguments.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). 32 bits
    of it, centred, so that it is neither 0 nor so near to 1 that a sum's rounding could reach it.
    """
    bits = _mix(_mix(seed & _MASK_64) ^ (position & _MASK_64))
    return ((bits >> 32) + 0.5) / 2**32


def _mix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return state ^ (state >> 31)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the rows of a draw ask for, on the device: a column each, [R, 1] of float64."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor

    @classmethod
    def of(cls, numbers: Sequence[tuple[float, ...]], device: torch.device) -> "Columns":
        """Take `DrawParameters.at` of each row; one transfer to the device."""
        table = torch.tensor(numbers, dtype=torch.float64).to(device)  # [R, 5]
        return cls(*table.unsqueeze(-1).unbind(1))

    def __getitem__(self, rows: Tensor) -> "Columns":
        chosen = (self.temperature, self.top_k, self.top_p, self.min_p, self.uniform)
        return Columns(*(column[rows] for column in chosen))


def draw(logits: Tensor, columns: Columns) -> Tensor:
    """Draw from whole distributions: logits [R, V] -> tokens [R]. The logits are used up.

    First a block of tokens, then one in it: the sums of blocks are ten times cheaper than one
    running sum over the vocabulary.
    """
    weights = _into_weights(logits, logits.amax(-1, keepdim=True), columns)
    return _pick(weights, columns.uniform)


def _pick(weights: Tensor, uniform_numbers: Tensor) -> Tensor:
    """Draw in proportion to `weights` [R, V] -> tokens [R]."""
    vocabulary = weights.shape[1]
    whole = vocabulary - vocabulary % BLOCK_TOKENS
    blocks = torch.unflatten(weights[:, :whole], 1, (-1, BLOCK_TOKENS)).sum(-1)
    rest = weights[:, whole:].sum(-1, keepdim=True)
    sums = torch.cat((blocks, rest), 1).cumsum(-1, dtype=torch.float64)  # [R, B]
    targets = uniform_numbers * sums[:, -1:]  # [R, 1]
    block = _first_above(sums, targets)  # [R, 1]
    before = F.pad(sums, (1, 0)).gather(1, block)
    ids = block * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS, device=block.device)  # [R, K]
    inside = weights.gather(1, ids.clamp(max=vocabulary - 1)).masked_fill(ids >= vocabulary, 0.0)
    token = _first_above(inside.cumsum(-1, dtype=torch.float64), targets - before)
    return ids.gather(1, token).squeeze(1)


def draw_restricted(logits: Tensor, columns: Columns, size: int) -> tuple[Tensor, Tensor]:
    """Draw among the tokens that top_k, top_p and min_p leave: logits [R, V] -> tokens [R].

    Also say for which rows [R] the best `size` tokens were enough to know them all.
    """
    top, ids = _best(logits, size)  # [R, N]
    peak = top[:, :1]
    total = _into_weights(logits.clone(), peak, columns).sum(-1, keepdim=True).double()
    best = _into_weights(top, peak.clone(), columns).double()  # the likeliest has weight 1
    is_everything = size >= logits.shape[-1]
    # 1. top_k
    is_cut_by_k = (columns.top_k > 0) & (columns.top_k <= best.shape[-1])
    rank = torch.arange(best.shape[-1], device=best.device)
    kept = best.masked_fill(is_cut_by_k & (rank >= columns.top_k), 0.0)
    # 2. top_p: after top_k the rest is the whole distribution again, and top_p is a share of that.
    cumulative = kept.cumsum(-1)
    nucleus = columns.top_p * torch.where(is_cut_by_k, cumulative[:, -1:], total)
    is_known = is_cut_by_k | (cumulative[:, -1:] >= nucleus) | (best[:, -1:] < columns.min_p)
    # A token is kept while the sum before it is short of the nucleus, so the first always is.
    kept = kept.masked_fill(cumulative - kept >= nucleus, 0.0)
    # 3. min_p
    kept = kept.masked_fill(best < columns.min_p, 0.0)
    # Of tokens as likely as the slice's last, more may lie outside, and have smaller ids.
    ends_inside = best.masked_fill(kept == 0, math.inf).amin(-1, keepdim=True) > best[:, -1:]
    is_complete = (is_known & ends_inside) | is_everything
    cumulative = kept.cumsum(-1)
    index = _first_above(cumulative, columns.uniform * cumulative[:, -1:])
    return ids.gather(1, index).squeeze(1), is_complete.squeeze(1)


def draw_wide(logits: Tensor, columns: Columns) -> Tensor:
    """Draw like `draw_restricted`, however many tokens are left: logits [R, V] -> tokens [R].

    The logits are used up. Nothing is sorted, which would cost twenty times as much: positive
    floats are in the order of their bits, and a histogram over those tells where to cut.
    """
    weights = _into_weights(logits, logits.amax(-1, keepdim=True), columns)
    bits = weights.view(torch.int32).long()  # [R, V]
    amounts = (weights.double() * UNITS).long()  # [R, V]
    if (columns.top_k > 0).any():
        places = torch.where(columns.top_k > 0, columns.top_k, logits.shape[1]).long()
        amounts = amounts.masked_fill(~_largest(bits, torch.ones_like(bits), places), 0)
    nucleus = (columns.top_p * amounts.sum(-1, keepdim=True)).ceil().long()
    is_kept = _largest(bits, amounts, nucleus) & (amounts > 0) & (weights >= columns.min_p)
    return _pick(weights.masked_fill_(~is_kept, 0.0), columns.uniform)


def _largest(bits: Tensor, amounts: Tensor, wanted: Tensor) -> Tensor:
    """Say which tokens [R, V], largest `bits` first and equals by id, reach an amount [R, 1]."""
    high = bits >> LOW_BITS
    edge, above = _edge(high, amounts, wanted)
    low = bits & ((1 << LOW_BITS) - 1)
    low_edge, above_low = _edge(low, amounts.masked_fill(high != edge, 0), wanted - above)
    least = (edge << LOW_BITS) + low_edge
    amounts_before = amounts.masked_fill(bits != least, 0).cumsum_(-1).sub_(amounts)
    return (bits > least) | ((bits == least) & (amounts_before < wanted - above - above_low))


def _edge(buckets: Tensor, amounts: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bucket in which the sum from the top reaches `wanted`, and the sum above: [R, 1].

    buckets and amounts [R, V]. Whole numbers: a GPU adds them in any order to the same sum.
    """
    empty = amounts.new_zeros(len(amounts), 1 << (31 - LOW_BITS))
    sums = empty.scatter_add_(1, buckets, amounts).flip(1)  # the top bucket first
    reached = sums.cumsum(-1)
    place = (reached < wanted).sum(-1, keepdim=True).clamp(max=reached.shape[1] - 1)
    return reached.shape[1] - 1 - place, (reached - sums).gather(1, place)


def _best(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the best tokens' logits and ids, best first, equals by id: [R, N] each.

    `topk` orders equals as it likes, in another way for other shapes.
    """
    if size >= logits.shape[-1]:
        return logits.sort(dim=-1, descending=True, stable=True)
    best, ids = logits.topk(size, -1, sorted=False)
    ids, order = ids.sort(dim=-1)
    best, order = best.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return best, ids.gather(1, order)


def _into_weights(logits: Tensor, peak: Tensor, columns: Columns) -> Tensor:
    """Turn logits [R, N], in place, into weights: probabilities as shares of that of `peak` [R, 1].

    The peak is taken off first: a tiny temperature must not overflow to infinity.
    """
    return logits.sub_(peak).div_(columns.temperature.float().clamp(min=1e-6)).exp_()


def _first_above(cumulative: Tensor, targets: Tensor) -> Tensor:
    """Return per row of `cumulative` [R, N] the first index [R, 1] whose sum passes the target."""
    # A target can round to the whole sum; behind the last token of any weight there are none.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.searchsorted(cumulative, targets, right=True).minimum(last)
