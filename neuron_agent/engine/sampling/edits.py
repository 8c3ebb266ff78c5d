"""What a request changes in its logits before a token is chosen, and how a step applies it.

Penalties and biases touch few tokens of a large vocabulary, so each request keeps a sparse list of
them that grows with its text; a step joins the lists of its rows and changes those logits alone.
It knows no request, no grammar and nothing of drawing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST_ENTRIES = 64
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
REPETITION_RANGE = 0.01, 100.0


class InvalidSampling(ValueError):
    """The caller asked for parameters that mean nothing."""


@dataclass(frozen=True, slots=True)
class EditParameters:
    """Checked penalties and biases of one request. Raises InvalidSampling on nonsense.

    Presence and frequency look at the generated tokens, as in OpenAI's API reference: what is
    subtracted is `presence` once a token was generated, and `frequency` each time it was. The
    repetition penalty (Keskar et al.: CTRL, 2019) looks at prompt and generated tokens, as
    transformers' RepetitionPenaltyLogitsProcessor does: a positive logit is divided by it and a
    negative one multiplied. It comes first, then what is added and subtracted.
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("presence", "frequency"):
            value = getattr(self, name)
            if not abs(value) <= MAX_PENALTY:
                raise InvalidSampling(f"{name}_penalty must be from -2 to 2, not {value}")
        lowest, highest = REPETITION_RANGE
        if not lowest <= self.repetition <= highest:
            raise InvalidSampling(
                f"repetition_penalty must be from {lowest} to {highest}, not {self.repetition}"
            )
        if not all(abs(value) <= MAX_BIAS for value in self.bias.values()):
            raise InvalidSampling("a logit_bias must be from -100 to 100")

    @property
    def is_none(self) -> bool:
        return not (self.presence or self.frequency or self.bias) and self.repetition == 1


class LogitEdits:
    """A request's list: of each token it changes, what to divide its logit by and what to add.

    `count` is called once for each generated token and costs the same however long the text is.
    """

    def __init__(self, parameters: EditParameters, prompt_ids: Sequence[int]) -> None:
        self._parameters = parameters
        self._places: dict[int, int] = {}  # token id -> its entry
        self._ids: NDArray[np.int64] = np.empty(FIRST_ENTRIES, np.int64)
        self._divisors: NDArray[np.float32] = np.empty(FIRST_ENTRIES, np.float32)
        self._addends: NDArray[np.float32] = np.empty(FIRST_ENTRIES, np.float32)
        self._num_generated: dict[int, int] = {}
        for token_id, bias in parameters.bias.items():
            place = self._place(token_id)
            self._addends[place] = bias
        for token_id in dict.fromkeys(prompt_ids) if parameters.repetition != 1 else ():
            place = self._place(token_id)
            self._divisors[place] = parameters.repetition

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._places)]

    @property
    def divisors(self) -> NDArray[np.float32]:
        return self._divisors[: len(self._places)]

    @property
    def addends(self) -> NDArray[np.float32]:
        return self._addends[: len(self._places)]

    def count(self, token_id: int) -> None:
        """Take note of a generated token."""
        asked = self._parameters
        if not asked.presence and not asked.frequency and asked.repetition == 1:
            return  # there are biases only
        number = self._num_generated[token_id] = self._num_generated.get(token_id, 0) + 1
        place = self._place(token_id)
        self._divisors[place] = asked.repetition
        penalty = asked.presence + asked.frequency * number
        self._addends[place] = asked.bias.get(token_id, 0.0) - penalty

    def _place(self, token_id: int) -> int:
        """Return the token's entry; a new one changes nothing yet."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            self._make_room(place)
            self._divisors[place], self._addends[place] = 1.0, 0.0
            self._ids[place] = token_id
        return place

    def _make_room(self, place: int) -> None:
        if place == len(self._ids):
            self._ids = np.resize(self._ids, 2 * place)
            self._divisors = np.resize(self._divisors, 2 * place)
            self._addends = np.resize(self._addends, 2 * place)


def apply_edits(logits: Tensor, edits: Sequence[tuple[int, LogitEdits]]) -> None:
    """Change `logits` [R, V] in place: for each (row, list), the list's tokens in that row.

    An embedding may have more rows than the output head: such tokens have no logit to change.
    """
    vocabulary = logits.shape[1]
    ids = np.concatenate([one.ids for _, one in edits])  # [N]
    rows = np.repeat([row for row, _ in edits], [len(one.ids) for _, one in edits])
    divisors = np.concatenate([one.divisors for _, one in edits])
    addends = np.concatenate([one.addends for _, one in edits])
    has_logit = ids < vocabulary
    places = (rows * vocabulary + ids)[has_logit]
    changes = np.stack((divisors, addends))[:, has_logit]  # [2, N]
    cells = logits.view(-1)  # [R * V]
    index = torch.from_numpy(places).to(logits.device)
    divisor, addend = torch.from_numpy(changes).to(logits.device)
    values = cells[index]
    cells[index] = torch.where(values > 0, values / divisor, values * divisor) + addend


def forbid(logits: Tensor, tokens: Sequence[tuple[int, Sequence[int]]]) -> None:
    """Make tokens impossible in `logits` [R, V], in place: for each (row, token ids)."""
    vocabulary = logits.shape[1]
    places = [row * vocabulary + one for row, ids in tokens for one in ids if one < vocabulary]
    logits.view(-1)[torch.tensor(places, dtype=torch.long, device=logits.device)] = -math.inf


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Which tokens some rows may choose: bit `t % 32` of word `t // 32` stands for token `t`."""

    rows: Sequence[int]
    bits: Tensor
    """[M, W] int32, in the host's memory; 32 * W >= V."""


def apply_masks(logits: Tensor, masks: TokenMasks) -> None:
    """Make all tokens impossible in `logits` [R, V], in place, that their row's mask leaves out."""
    octets = masks.bits.view(torch.uint8).to(logits.device, non_blocking=True)  # [M, 4 * W]
    places = torch.arange(8, dtype=torch.uint8, device=logits.device)
    is_out = ((octets.unsqueeze(-1) >> places) & 1) == 0  # [M, 4 * W, 8]
    is_out = is_out.flatten(1)[:, : logits.shape[1]]  # [M, V]
    if len(masks.rows) == len(logits):
        logits.masked_fill_(is_out, -math.inf)
    else:
        rows = torch.tensor(masks.rows, device=logits.device)
        logits[rows] = logits[rows].masked_fill_(is_out, -math.inf)
