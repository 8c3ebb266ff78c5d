"""What all books of the KV cache have in common: their error, a place in the cache, pending copies.

It knows neither slots nor blocks, no request and no tensor.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from neuron_agent.scheduling.batch import Copy


class IntegrityError(Exception):
    """The books do not add up: something was leaked, or given out twice."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence lives from its admission on."""

    slot: int
    num_cached: int
    """Leading tokens that are in the cache already, or will be by a copy of the next batch."""
    block_ids: Sequence[int] = ()
    """The sequence's blocks; the list grows in place. Empty where the cache is not paged."""


class PendingCopies:
    """Copies that no computed batch has carried out yet, by the sequence they are made for.

    A step that failed is scheduled again, so a copy stays pending, and its source untouched,
    until a batch with it is known to be done.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Copy] = {}
        self._num_reads: Counter[int] = Counter()

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._copies

    @property
    def all(self) -> tuple[Copy, ...]:
        return tuple(self._copies.values())

    @property
    def sources(self) -> frozenset[int]:
        return frozenset(self._num_reads)

    def add(self, request_id: str, copy: Copy) -> None:
        self._copies[request_id] = copy
        self._num_reads[copy.source] += 1

    def pop(self, request_id: str) -> Copy | None:
        """Forget a sequence's copy; return it if there was one."""
        copy = self._copies.pop(request_id, None)
        if copy is not None:
            self._num_reads[copy.source] -= 1
            if not self._num_reads[copy.source]:
                del self._num_reads[copy.source]
        return copy

    def done_by(self, copies: Sequence[Copy]) -> tuple[str, ...]:
        """Return the sequences whose pending copy is among those carried out."""
        if not copies:
            return ()
        done = frozenset(copies)
        return tuple(name for name, copy in self._copies.items() if copy in done)
