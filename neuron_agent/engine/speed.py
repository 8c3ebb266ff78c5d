"""How fast an engine is: tokens a second between two reports, and what its steps take.

It reads no clock and knows no model: steps and times are passed in.
"""

from dataclasses import dataclass

from neuron_agent.scheduling.batch import Batch

WEIGHT_OF_NEWEST = 0.1


@dataclass(frozen=True, slots=True)
class Rates:
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prefill_step_seconds: float
    decode_step_seconds: float


class SpeedMeter:
    """Counts tokens since the last reading; keeps running means of the time of steps."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._prefill_tokens = 0
        self._decode_tokens = 0
        self._prefill_step_seconds: float | None = None
        self._decode_step_seconds: float | None = None

    def count(self, batch: Batch, seconds: float) -> None:
        """Count a step. Decode tokens are those that came out, the first of a request included."""
        self._prefill_tokens += batch.num_prefill_tokens
        self._decode_tokens += len(batch.sampled)
        if batch.num_prefill_tokens:
            self._prefill_step_seconds = _mean(self._prefill_step_seconds, seconds)
        else:
            self._decode_step_seconds = _mean(self._decode_step_seconds, seconds)

    def take(self, now: float) -> Rates:
        """Return the rates since the last call, and begin anew."""
        seconds = now - self._since
        per_second = 1 / seconds if seconds > 0 else 0.0
        rates = Rates(
            prefill_tokens_per_second=self._prefill_tokens * per_second,
            decode_tokens_per_second=self._decode_tokens * per_second,
            prefill_step_seconds=self._prefill_step_seconds or 0.0,
            decode_step_seconds=self._decode_step_seconds or 0.0,
        )
        self._since, self._prefill_tokens, self._decode_tokens = now, 0, 0
        return rates


def _mean(old: float | None, newest: float) -> float:
    return newest if old is None else old + WEIGHT_OF_NEWEST * (newest - old)
