"""What the scheduler needs of the KV cache's books, whatever the cache looks like.

Two forms of it are real: contiguous slots (`slots`) and paged blocks (`blocks`). It names them
and knows neither's insides, no tensor and no clock.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, assert_never

from neuron_agent.scheduling.batch import Copy
from neuron_agent.scheduling.blocks import BlockPool
from neuron_agent.scheduling.books import Place
from neuron_agent.scheduling.slots import SlotPool


class KvLayout(StrEnum):
    """How a forward keeps keys and values."""

    SLOTS = "slots"
    """Contiguous per sequence; a shared prefix is copied, row by row."""
    BLOCKS = "blocks"
    """Pages of fixed size with a table per sequence; full blocks of a shared prefix are shared."""
    PRIVATE = "private"
    """A state per sequence that cannot be copied or cut: nothing is shared."""


class KvPool(Protocol):
    """Who holds which part of the cache, and what of it is kept only for the next prompt alike.

    What is kept for reuse gives way whenever a running sequence needs its room. A pool learns by
    `record` what has really been computed; nothing else is ever shared.
    """

    @property
    def capacity_tokens(self) -> int: ...

    @property
    def used_tokens(self) -> int:
        """Tokens held for running sequences; what is kept for reuse is as good as free."""

    @property
    def holders(self) -> frozenset[str]: ...

    @property
    def copies(self) -> tuple[Copy, ...]:
        """What the next batch has to copy; the same again until it is settled."""

    def held_tokens(self, request_id: str) -> int:
        """How long the sequence may become before it must grow."""

    def allocate(self, request_id: str, ids: Sequence[int], tokens: int) -> Place | None:
        """Find room for `tokens` tokens, and what of `ids` is there; None if there is no room.

        At least one token of `ids` is left to be computed.
        """

    def grow(self, request_id: str, tokens: int) -> bool:
        """Let the sequence hold at least `tokens`; False, and no change, if it cannot be."""

    def record(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Note tokens that were computed behind those the sequence has in the cache."""

    def settle(self, copies: Sequence[Copy]) -> None:
        """Note copies that were carried out: their sources may change from now on."""

    def free(self, request_id: str, *, is_kept: bool) -> None:
        """Take the sequence out. Its contents stay for reuse, or (not kept) are never used again.

        If not kept, whatever it shared with others leaves the prefix cache as well.
        """

    def drop_prefixes(self) -> None:
        """Give up everything that is kept only for reuse."""

    def take_freed_slots(self) -> tuple[int, ...]:
        """Return the slots given up since the last call: their contents can go."""

    def check_integrity(self) -> None:
        """Raise IntegrityError if something was leaked or given out twice."""


def build_pool(
    layout: KvLayout, *, max_running: int, capacity_tokens: int, block_tokens: int
) -> KvPool:
    """Return the books for a cache. Raises ValueError if it could not hold a single sequence."""
    match layout:
        case KvLayout.SLOTS:
            return SlotPool(max_running, capacity_tokens, keeps_prefixes=True)
        case KvLayout.PRIVATE:
            return SlotPool(max_running, capacity_tokens, keeps_prefixes=False)
        case KvLayout.BLOCKS:
            return BlockPool(max_running, capacity_tokens, block_tokens)
        case _:
            assert_never(layout)
