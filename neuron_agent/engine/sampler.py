"""Chooses the next token of every sampled row of a step, in one batched pass.

A row's choice depends on its own logits, parameters, seed and position alone: the uniform number
comes from (seed, position) and the token from the inverse of the cumulative distribution. So the
same seed gives the same text, whatever else is in the batch. It knows no request and no cache.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SLICE_TOKENS = 1024
"""top-p looks at this many best tokens first: a full sort of the vocabulary costs 20 times more."""

_MASK_64 = (1 << 64) - 1


class InvalidSampling(ValueError):
    """The caller asked for parameters that mean nothing."""


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Checked parameters of one request. Raises InvalidSampling on nonsense."""

    temperature: float
    top_p: float
    top_k: int  # 0 = off
    seed: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidSampling(f"temperature must be a number from 0 up, not {self.temperature}")
        if not 0 <= self.top_p <= 1:
            raise InvalidSampling(f"top_p must be from 0 to 1, not {self.top_p}")
        if self.top_k < 0:
            raise InvalidSampling(f"top_k must be 0 (off) or more, not {self.top_k}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0

    @property
    def is_restricted(self) -> bool:
        return self.top_p < 1 or self.top_k > 0


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to sample: its parameters and the position of the token that is chosen."""

    parameters: SamplingParameters
    position: int

    @property
    def uniform(self) -> float:
        return uniform(self.parameters.seed, self.position)


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


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Choose a token per row of `logits` [R, V]; None where the row is not a distribution (NaN).

    One transfer to the host, a second one only if a nucleus did not fit into the slice.
    """
    logits = logits.float()
    # NaN spreads through max, and a row of infinities has no distribution either.
    is_sound = torch.isfinite(logits.amax(-1))  # [R]
    tokens = logits.argmax(-1)  # [R]
    is_complete = torch.ones_like(is_sound)
    plain = [row for row, draw in enumerate(draws) if _is_plain(draw)]
    restricted = [row for row, draw in enumerate(draws) if _is_restricted(draw)]
    if plain:
        tokens[plain] = _draw_plain(logits[plain], [draws[row] for row in plain])
    if restricted:
        chosen, complete = _draw_restricted(
            logits[restricted], [draws[row] for row in restricted], SLICE_TOKENS
        )
        tokens[restricted], is_complete[restricted] = chosen, complete
    rows: list[list[int]] = torch.stack((tokens, is_sound.long(), is_complete.long()), 1).tolist()
    retries = [row for row, (_, sound, complete) in enumerate(rows) if sound and not complete]
    for row in retries:
        chosen, _ = _draw_restricted(logits[row : row + 1], [draws[row]], logits.shape[-1])
        rows[row][0] = int(chosen.item())
    return [token if sound else None for token, sound, _ in rows]


def _is_plain(draw: Draw) -> bool:
    return not (draw.parameters.is_greedy or draw.parameters.is_restricted)


def _is_restricted(draw: Draw) -> bool:
    return draw.parameters.is_restricted and not draw.parameters.is_greedy


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)  # [R, 1]


def _probabilities(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    temperatures = _column([draw.parameters.temperature for draw in draws], logits).float()
    # The maximum is taken off first: a tiny temperature must not overflow to infinity.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperatures.clamp(min=1e-6)
    return torch.softmax(scaled, -1)


def _invert(cumulative: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Return per row of `cumulative` [R, N] the first index whose sum passes the row's uniform."""
    targets = _column([draw.uniform for draw in draws], cumulative) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)  # [R, 1]
    return index.clamp(max=cumulative.shape[-1] - 1)


def _draw_plain(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    cumulative = _probabilities(logits, draws).cumsum(-1, dtype=torch.float64)
    return _invert(cumulative, draws).squeeze(1)


def _draw_restricted(
    logits: Tensor, draws: Sequence[Draw], slice_tokens: int
) -> tuple[Tensor, Tensor]:
    """Draw among each row's top_k and top_p tokens; say too which rows the slice was enough for."""
    vocabulary = logits.shape[-1]
    top_ks = [min(draw.parameters.top_k or vocabulary, vocabulary) for draw in draws]
    best, ids = _probabilities(logits, draws).topk(min(slice_tokens, vocabulary), -1)  # [R, N]
    rank = torch.arange(best.shape[-1], device=best.device)
    best = best.double().masked_fill(rank >= _column([float(k) for k in top_ks], best), 0.0)
    cumulative = best.cumsum(-1)
    # After top_k the rest is the whole distribution again, and top_p is a share of that.
    is_cut_by_k = _column([float(k <= best.shape[-1]) for k in top_ks], best).bool()
    mass = torch.where(is_cut_by_k, cumulative[:, -1:], 1.0)
    nucleus = _column([draw.parameters.top_p for draw in draws], best) * mass
    is_complete = is_cut_by_k | (cumulative[:, -1:] >= nucleus)
    # A token is kept while the sum before it is short of the nucleus, so the first always is.
    kept = best.masked_fill(cumulative - best >= nucleus, 0.0)
    index = _invert(kept.cumsum(-1), draws)
    return ids.gather(1, index).squeeze(1), is_complete.squeeze(1)
