"""Which blocks of the cache hold which tokens after which: a tree of what was computed.

A block is named by its own tokens and by the name of everything before them. Names are numbers
that are never used twice, and tokens are looked up as they are, not by a hash of them: a block
that is found holds exactly what was asked for. It knows no sequence and counts no references.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice

ROOT = 0
MOST_SIBLINGS = 32  # looked at for a block that is alike only in part; the newest ones


@dataclass(frozen=True, slots=True)
class Match:
    """What of a prompt is in the cache."""

    block_ids: tuple[int, ...]
    """Whole blocks, from the first on."""
    name: int
    """Of the last of them."""
    partial_block: int | None
    """A block that continues like the prompt, for `num_partial` tokens."""
    num_partial: int


@dataclass(frozen=True, slots=True)
class _Node:
    name: int
    parent: int
    tokens: tuple[int, ...]


class BlockTree:
    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._fewest_partial = max(1, block_tokens // 8)  # less is not worth a copy
        self._names = count(ROOT + 1)
        self._nodes: dict[int, _Node] = {}  # by block
        self._children: dict[int, dict[tuple[int, ...], int]] = {}  # by name: tokens -> block

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._nodes

    def add(self, block_id: int, parent: int, tokens: tuple[int, ...]) -> int:
        """Name a computed block, unless another one has the same contents; return their name."""
        siblings = self._children.setdefault(parent, {})
        if tokens in siblings:
            return self._nodes[siblings[tokens]].name
        name = next(self._names)
        siblings[tokens] = block_id
        self._nodes[block_id] = _Node(name, parent, tokens)
        return name

    def remove(self, block_id: int) -> None:
        """Let a block never be found again; harmless if it never could be.

        What was named after it is not found either: no later block will get the same name.
        """
        node = self._nodes.pop(block_id, None)
        if node is None:
            return
        siblings = self._children[node.parent]
        del siblings[node.tokens]
        if not siblings:
            del self._children[node.parent]

    def find(self, ids: Sequence[int]) -> Match:
        """Return the blocks that hold the beginning of `ids`."""
        name, found = ROOT, []
        for start in range(0, len(ids) - self._block_tokens + 1, self._block_tokens):
            tokens = tuple(ids[start : start + self._block_tokens])
            block_id = self._children.get(name, {}).get(tokens)
            if block_id is None:
                break
            found.append(block_id)
            name = self._nodes[block_id].name
        start = len(found) * self._block_tokens
        partial, num_partial = self._find_partial(
            name, tuple(ids[start : start + self._block_tokens])
        )
        return Match(tuple(found), name, partial, num_partial)

    def _find_partial(self, parent: int, tokens: tuple[int, ...]) -> tuple[int | None, int]:
        best, most = None, self._fewest_partial - 1
        siblings = self._children.get(parent, {})
        for others, block_id in islice(reversed(siblings.items()), MOST_SIBLINGS):
            num_alike = _num_alike(tokens, others)
            if num_alike > most:
                best, most = block_id, num_alike
        return best, most if best is not None else 0

    @property
    def is_consistent(self) -> bool:
        """Whether blocks and names point at each other."""
        listed = {
            block_id: (parent, tokens)
            for parent, children in self._children.items()
            for tokens, block_id in children.items()
        }
        return listed == {block: (node.parent, node.tokens) for block, node in self._nodes.items()}


def _num_alike(tokens: tuple[int, ...], others: tuple[int, ...]) -> int:
    end = min(len(tokens), len(others))
    return next((i for i in range(end) if tokens[i] != others[i]), end)
