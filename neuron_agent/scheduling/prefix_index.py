"""Finds the slots whose sequence begins like a prompt, in time proportional to the prompt.

Every sequence is cut into pieces of equal length; a piece's key is the hash of its tokens and of
the key before it, so one key stands for everything up to there. Keys only point at candidates:
whoever uses one compares the tokens themselves. It knows no cache and decides nothing.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

PIECE_TOKENS = 16
MOST_CANDIDATES = 16  # of equal depth; the newest are looked at


class PrefixIndex:
    def __init__(self) -> None:
        self._slots_by_key: dict[int, dict[int, None]] = {}  # the inner one is an ordered set

    def add(self, slot: int, keys: Iterable[int]) -> None:
        for key in keys:
            self._slots_by_key.setdefault(key, {})[slot] = None

    def remove(self, slot: int, keys: Iterable[int]) -> None:
        for key in keys:
            slots = self._slots_by_key[key]
            del slots[slot]
            if not slots:
                del self._slots_by_key[key]

    def slots_with(self, key: int) -> tuple[int, ...]:
        return tuple(self._slots_by_key.get(key, ()))

    def deepest(self, ids: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Return how many tokens the best candidates seem to share with `ids`, and their slots."""
        depth, key, found = 0, 0, None
        for piece in pieces_of(ids, 0):
            key = next_key(key, piece)
            slots = self._slots_by_key.get(key)
            if slots is None:
                break
            depth, found = depth + PIECE_TOKENS, slots
        return depth, tuple(islice(reversed(found), MOST_CANDIDATES)) if found else ()

    @property
    def entries(self) -> set[tuple[int, int]]:
        """Every (key, slot) there is."""
        return {(key, slot) for key, slots in self._slots_by_key.items() for slot in slots}


def pieces_of(ids: Sequence[int], start: int) -> Iterable[tuple[int, ...]]:
    """Cut `ids` into whole pieces, from position `start` on."""
    for begin in range(start, len(ids) - PIECE_TOKENS + 1, PIECE_TOKENS):
        yield tuple(ids[begin : begin + PIECE_TOKENS])


def next_key(key: int, piece: tuple[int, ...]) -> int:
    return hash((key, piece))


def num_common(ids: Sequence[int], others: Sequence[int], start: int) -> int:
    """Count how long both are alike, given that they are up to `start`."""
    end = min(len(ids), len(others))
    return next((i for i in range(start, end) if ids[i] != others[i]), end)
