"""Log probabilities beside the text they belong to, though text is held back and markup left out.

Each token of what the model says comes out once, with the text it completed; tokens that only
thought, called or marked come out never. It is sans-IO and knows no request.
"""

from collections import deque
from collections.abc import Callable, Sequence

from neuron_agent.devices.channel import TokenLogprob
from neuron_agent.wire.events import TokenChance, TokenLogprobs

LOWEST_LOGPROB = -9999.0
"""What OpenAI gives for a token that cannot be: JSON has no minus infinity."""


class LogprobTrack:
    """Follows tokens through the parser (`read`, `said`) and past the stop strings (`take`)."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._read: list[TokenLogprobs] = []
        self._said: deque[TokenLogprobs] = deque()
        self._said_from = 0  # where the first of `_said` begins in all that was said
        self._num_shown = 0

    def read(self, token_id: int, logprob: TokenLogprob, num_characters: int) -> None:
        """Note a token that completed so many characters, before they are parsed."""
        top = tuple(self._chance(other, value) for other, value in logprob.top)
        chosen = self._chance(token_id, logprob.logprob)
        self._read.append(TokenLogprobs(chosen, top, num_characters))

    def said(self, num_characters: int) -> None:
        """Note that so many characters up to here are the model's answer: not markup."""
        start, found = len(self._read), 0
        while start > 0 and (found < num_characters or not self._read[start - 1].num_characters):
            start -= 1
            found += self._read[start].num_characters
        self._said.extend(self._read[start:])
        self._read.clear()

    def unsaid(self) -> None:
        """Note that what was read is no part of the answer."""
        self._read.clear()

    def take(self, num_characters: int) -> tuple[TokenLogprobs, ...]:
        """Return the tokens of so many more characters that are shown now."""
        self._num_shown += num_characters
        taken = []
        while self._said and self._said_from < self._num_shown:
            token = self._said.popleft()
            self._said_from += token.num_characters
            taken.append(token)
        return tuple(taken)

    def _chance(self, token_id: int, logprob: float) -> TokenChance:
        utf8 = self._token_bytes(token_id)
        return TokenChance(utf8.decode(errors="replace"), utf8, max(logprob, LOWEST_LOGPROB))


def pair(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] | None
) -> list[tuple[int, TokenLogprob]]:
    """Return each token with its log probabilities. Raises ValueError if they do not match."""
    return list(zip(token_ids, logprobs or (), strict=True))
