"""Chooses the next token of every sampled row of a step, in one batched pass.

    edit the logits (penalties, biases, bans, masks) -> the best token, or a drawn one -> the host

Rows that ask for nothing pay for nothing: a step of greedy rows is an argmax. It knows no request,
no cache, and not where a mask comes from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite

import torch
from torch import Tensor

from neuron_agent.devices.channel import TokenLogprob
from neuron_agent.engine.sampling.drawing import (
    SLICE,
    Columns,
    DrawParameters,
    draw,
    draw_restricted,
    draw_wide,
)
from neuron_agent.engine.sampling.edits import (
    LogitEdits,
    TokenMasks,
    apply_edits,
    apply_masks,
    forbid,
)

WIDE_ROWS = 8
"""How many are drawn among all tokens at once: each takes ten megabytes meanwhile."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to sample: what its request asks for, and the position of the token chosen."""

    parameters: DrawParameters
    position: int
    edits: LogitEdits | None = None
    forbidden_ids: Sequence[int] = ()
    num_logprobs: int | None = None
    """None = no log-probabilities; k = those of the token chosen and of the k best."""


class RowFailure(StrEnum):
    NOT_FINITE = "not_finite"
    """The model gave no numbers to choose by."""
    NO_TOKEN = "no_token"
    """Nothing that may be chosen is left."""


@dataclass(frozen=True, slots=True)
class Choice:
    token_id: int
    logprob: TokenLogprob | None = None


def sample(
    logits: Tensor, draws: Sequence[Draw], masks: TokenMasks | None = None
) -> list[Choice | RowFailure]:
    """Choose a token per row of `logits` [R, V], which is used up: it may be changed in place.

    1. Take the log-probabilities that are asked for: of the model's own distribution, before
       temperature, penalties and masks change it.
    2. Change the logits: penalties and biases, then forbidden tokens and masks.
    3. Take the best token of each row, and draw in the rows that are not greedy.
    4. Bring it all to the host at once.
    5. Only rows whose nucleus was wider than the slice are drawn again, among all tokens.
    """
    logits = logits.float()
    logprobs = _Logprobs.of(logits, draws)
    _edit(logits, draws, masks)
    best, tokens = logits.max(-1)  # [R], [R]; NaN spreads
    is_complete = _draw_rows(logits, draws, tokens)
    numbers = _to_host(tokens, best, is_complete, logprobs)
    again = [row for row, one in enumerate(numbers) if isfinite(one[1]) and not one[2]]
    if again:
        _draw_wider(logits, draws, again, tokens)
        numbers = _to_host(tokens, best, is_complete, logprobs)
    limited = {row for row, one in enumerate(draws) if one.forbidden_ids}
    limited.update(masks.rows if masks else ())
    return [
        _choice(number, one, is_limited=row in limited)
        for row, (number, one) in enumerate(zip(numbers, draws, strict=True))
    ]


def _edit(logits: Tensor, draws: Sequence[Draw], masks: TokenMasks | None) -> None:
    edits = [(row, one.edits) for row, one in enumerate(draws) if one.edits is not None]
    if edits:
        apply_edits(logits, edits)
    forbidden = [(row, one.forbidden_ids) for row, one in enumerate(draws) if one.forbidden_ids]
    if forbidden:
        forbid(logits, forbidden)
    if masks is not None:
        apply_masks(logits, masks)


def _draw_rows(logits: Tensor, draws: Sequence[Draw], tokens: Tensor) -> Tensor:
    """Put a drawn token into `tokens` [R] where a row is not greedy; say where that is final."""
    is_complete = torch.ones_like(tokens, dtype=torch.bool)
    drawn = [(row, one) for row, one in enumerate(draws) if not one.parameters.is_greedy]
    plain = [(row, one) for row, one in drawn if not one.parameters.is_restricted]
    restricted = [(row, one) for row, one in drawn if one.parameters.is_restricted]
    for rows in (plain, restricted):
        if not rows:
            continue
        index = torch.tensor([row for row, _ in rows], device=logits.device)
        # When all rows draw, they need not be copied first.
        chosen = logits if len(rows) == len(draws) else logits[index]
        columns = _columns([one for _, one in rows], logits.device)
        if rows is plain:
            tokens[index] = draw(chosen, columns)
        else:
            tokens[index], is_complete[index] = draw_restricted(chosen, columns, SLICE)
    return is_complete


def _draw_wider(logits: Tensor, draws: Sequence[Draw], rows: Sequence[int], tokens: Tensor) -> None:
    """Draw these rows again, looking at all their tokens."""
    for first in range(0, len(rows), WIDE_ROWS):
        part = rows[first : first + WIDE_ROWS]
        index = torch.tensor(part, device=logits.device)
        columns = _columns([draws[row] for row in part], logits.device)
        tokens[index] = draw_wide(logits[index], columns)


def _columns(draws: Sequence[Draw], device: torch.device) -> Columns:
    return Columns.of([one.parameters.at(one.position) for one in draws], device)


# --- log-probabilities -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Logprobs:
    """What the model itself thinks, in the rows that ask for it."""

    rows: Tensor  # [L]
    own: Tensor  # [L, V]
    top: Tensor  # [L, K]
    top_ids: Tensor  # [L, K]

    @classmethod
    def of(cls, logits: Tensor, draws: Sequence[Draw]) -> "_Logprobs | None":
        asked = [row for row, one in enumerate(draws) if one.num_logprobs is not None]
        if not asked:
            return None
        rows = torch.tensor(asked, device=logits.device)
        own = logits[rows].log_softmax(-1)
        num_top = max(draws[row].num_logprobs or 0 for row in asked)
        top, top_ids = own.topk(min(num_top, logits.shape[1]), -1)
        return cls(rows, own, top, top_ids)

    def table(self, tokens: Tensor) -> Tensor:
        """Return [R, 1 + 2 * K]: of the chosen token, of the best, and which they are."""
        chosen = self.own.gather(1, tokens[self.rows].unsqueeze(1))  # [L, 1]
        asked = torch.cat((chosen, self.top, self.top_ids), 1).double()
        table = asked.new_zeros(len(tokens), asked.shape[1])
        table[self.rows] = asked
        return table


def _to_host(
    tokens: Tensor, best: Tensor, is_complete: Tensor, logprobs: _Logprobs | None
) -> list[list[float]]:
    """Return a list per row. Doubles hold token ids exactly."""
    columns = torch.stack((tokens.double(), best.double(), is_complete.double()), 1)  # [R, 3]
    if logprobs is not None:
        columns = torch.cat((columns, logprobs.table(tokens)), 1)
    rows: list[list[float]] = columns.tolist()
    return rows


def _choice(numbers: Sequence[float], asked: Draw, *, is_limited: bool) -> Choice | RowFailure:
    token_id, best, _, *logprobs = numbers
    if best == -math.inf and is_limited:
        return RowFailure.NO_TOKEN
    if not isfinite(best):
        return RowFailure.NOT_FINITE
    if asked.num_logprobs is None:
        return Choice(int(token_id))
    chosen, *top = logprobs
    num_top = len(top) // 2
    pairs = zip(map(int, top[num_top:]), top[:num_top], strict=True)
    return Choice(int(token_id), TokenLogprob(chosen, list(pairs)[: asked.num_logprobs]))
