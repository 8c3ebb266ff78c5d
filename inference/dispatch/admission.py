"""Whether this gateway takes one more request: it has room, or says so at once.

What is bounded is what a gateway holds in memory for others: the bodies of all requests, from their
first byte to the end of their answer, and of these the ones that wait for a load. How much a neuron
takes is the neuron's own admission. Values in, a value out.
"""

from dataclasses import dataclass

RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    max_waiting: int = 1024
    """Requests that wait for loads, of all models."""
    max_waiting_bytes: int = 512 << 20
    """Bodies of those."""
    max_held_bytes: int = 1 << 30
    """Bodies of all requests, whatever they wait for."""


@dataclass(frozen=True, slots=True)
class Admit:
    pass


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    retry_after_seconds: int = RETRY_AFTER_SECONDS


def admit_body(held_bytes: int, more_bytes: int, limits: Limits) -> Admit | Reject:
    """Decide on a body, or the next piece of one, beside what is held already."""
    if held_bytes + more_bytes > limits.max_held_bytes:
        return Reject("The requests at hand fill the memory set aside for them.")
    return Admit()


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
