"""A circuit breaker as a value: after failures it opens for a while, then lets requests try again.

It reads no clock: `now` is passed in, in seconds of a monotonic clock. Transport failures of a
neuron and slow answers of a placement feed different breakers: a slow model must not close off
its neuron. Which breaker is whose is its owner's business.
"""

from dataclasses import dataclass

MIN_OPEN_SECONDS = 1.0
MAX_OPEN_SECONDS = 30.0
FAILURES_TO_OPEN = 3


@dataclass(frozen=True, slots=True)
class Breaker:
    num_failures: int = 0
    """In a row."""
    open_until: float = 0.0

    def is_closed(self, now: float) -> bool:
        return now >= self.open_until

    def seconds_left(self, now: float) -> float:
        return max(0.0, self.open_until - now)

    def after_failure(self, now: float, *, is_certain: bool = False) -> "Breaker":
        """Return the breaker after one more failure.

        A certain one (a refused connection) opens it at once; others only as a series. Each
        failure beyond that doubles the time it stays open. While it is open, only requests from
        before can fail: that is no news, however many they were.
        """
        if not self.is_closed(now):
            return self
        num_failures = self.num_failures + 1
        num_beyond = num_failures - (1 if is_certain else FAILURES_TO_OPEN)
        if num_beyond < 0:
            return Breaker(num_failures)
        seconds = min(MAX_OPEN_SECONDS, MIN_OPEN_SECONDS * 2 ** min(num_beyond, 10))
        return Breaker(num_failures, now + seconds)


CLOSED = Breaker()
