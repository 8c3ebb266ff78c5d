"""Whether this gateway takes one more request: it has room, or says so at once.

What is bounded is what a gateway holds in memory for others: requests, and bodies that wait for a
load. How much a neuron takes is the neuron's own admission. Values in, a value out.
"""

from dataclasses import dataclass

RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    max_waiting: int = 1024
    """Requests that wait for loads, of all models."""
    max_waiting_bytes: int = 512 << 20
    """Bodies of those."""


@dataclass(frozen=True, slots=True)
class Admit:
    pass


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    retry_after_seconds: int = RETRY_AFTER_SECONDS


def admit_waiter(
    num_waiting: int, waiting_bytes: int, body_bytes: int, limits: Limits
) -> Admit | Reject:
    """Decide on a request that must wait for its model."""
    if num_waiting >= limits.max_waiting:
        return Reject(f"{num_waiting} requests wait for models to load already.")
    # The first is always taken: one body is bounded elsewhere.
    if num_waiting and waiting_bytes + body_bytes > limits.max_waiting_bytes:
        return Reject("The requests that wait for models to load fill the memory set aside.")
    return Admit()
