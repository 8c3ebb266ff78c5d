"""The books of a paged cache: blocks of equal size, and for every sequence a table of its blocks.

Sequences that begin alike have the same blocks in their tables, as long as whole blocks are alike;
a block is then counted once for each of them. The first block that differs is copied and gone on
with, so nobody ever writes into what another one reads. Blocks that nobody has in a table any more
stay findable and give way least recently used first, the ends of sequences before their beginnings.

The bookkeeping only: it knows no tensor, and it does not decide who is admitted or preempted.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from neuron_agent.scheduling.batch import Copy
from neuron_agent.scheduling.block_tree import BlockTree, Match
from neuron_agent.scheduling.books import IntegrityError, PendingCopies, Place


@dataclass(slots=True, eq=False)
class _Sequence:
    slot: int
    block_ids: list[int]
    num_shared: int
    """Leading blocks that were found in the cache: read, never written."""
    num_named: int
    """Leading blocks whose contents the tree knows: the shared ones, then full ones of its own."""
    name: int
    """What the tree calls the last of them."""
    ids: list[int] = field(default_factory=list)
    """The tokens in its blocks, or there after its pending copy."""


class BlockPool:
    """At most `max_running` sequences in `capacity_tokens // block_tokens` blocks."""

    def __init__(self, max_running: int, capacity_tokens: int, block_tokens: int) -> None:
        self.num_blocks = capacity_tokens // block_tokens
        if max_running < 1 or self.num_blocks < 1:
            raise ValueError(f"{max_running} sequences in {self.num_blocks} blocks are no pool")
        self.block_tokens = block_tokens
        self.capacity_tokens = self.num_blocks * block_tokens
        # Reversed, so that pop() hands out the lowest one first.
        self._free_slots = list(range(max_running))[::-1]
        self._free_blocks = list(range(self.num_blocks))[::-1]
        self._kept: dict[int, None] = {}  # findable, in no table; least recently used first
        self._num_users: Counter[int] = Counter()  # tables and pending copies, by block
        self._sequences: dict[str, _Sequence] = {}
        self._tree = BlockTree(block_tokens)
        self._copies = PendingCopies()
        self._freed_slots: list[int] = []
        self._num_slots = max_running

    @property
    def used_tokens(self) -> int:
        return len(self._num_users) * self.block_tokens

    @property
    def holders(self) -> frozenset[str]:
        return frozenset(self._sequences)

    @property
    def copies(self) -> tuple[Copy, ...]:
        return self._copies.all

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def held_tokens(self, request_id: str) -> int:
        return len(self._sequences[request_id].block_ids) * self.block_tokens

    def take_freed_slots(self) -> tuple[int, ...]:
        freed = tuple(self._freed_slots)
        self._freed_slots.clear()
        return freed

    # --- taking --------------------------------------------------------------------------------

    def allocate(self, request_id: str, ids: Sequence[int], tokens: int) -> Place | None:
        """See KvPool. A block that is alike only in part is copied if there is room for both."""
        if request_id in self._sequences:
            raise IntegrityError(f"{request_id} already has a table")
        if not self._free_slots:
            return None
        # The last token is computed in any case: its logits are asked for.
        match = self._tree.find(ids[:-1])
        num_new = self._num_blocks_for(tokens) - len(match.block_ids)
        with_source = (*match.block_ids, *_some(match.partial_block))
        if self._has_room(num_new, spared=with_source):
            return self._place(request_id, ids, match, num_new, match.partial_block)
        if self._has_room(num_new, spared=match.block_ids):
            return self._place(request_id, ids, match, num_new, None)
        return None

    def grow(self, request_id: str, tokens: int) -> bool:
        block_ids = self._sequences[request_id].block_ids
        num_new = self._num_blocks_for(tokens) - len(block_ids)
        if not self._has_room(num_new):
            return False
        block_ids.extend(self._take_block() for _ in range(num_new))
        return True

    def _num_blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _has_room(self, num_blocks: int, spared: Sequence[int] = ()) -> bool:
        num_spared = sum(block_id in self._kept for block_id in spared)
        return num_blocks <= len(self._free_blocks) + len(self._kept) - num_spared

    def _place(
        self,
        request_id: str,
        ids: Sequence[int],
        match: Match,
        num_new: int,
        source: int | None,
    ) -> Place:
        # Everything found is held on to before anything is taken, lest it be given away.
        for block_id in (*match.block_ids, *_some(source)):
            self._use(block_id)
        block_ids = [*match.block_ids, *(self._take_block() for _ in range(num_new))]
        num_shared = len(match.block_ids)
        num_cached = num_shared * self.block_tokens
        if source is not None:
            num_cached += match.num_partial
            self._copies.add(request_id, Copy(source, block_ids[num_shared], match.num_partial))
        slot = self._free_slots.pop()
        sequence = _Sequence(slot, block_ids, num_shared, num_shared, match.name)
        sequence.ids.extend(ids[:num_cached])
        self._sequences[request_id] = sequence
        return Place(slot, num_cached, block_ids)

    def _take_block(self) -> int:
        """Return a block that nobody uses; the one kept longest without use if none is empty."""
        if self._free_blocks:
            block_id = self._free_blocks.pop()
        else:
            block_id = next(iter(self._kept))
            del self._kept[block_id]
            self._tree.remove(block_id)
        self._num_users[block_id] = 1
        return block_id

    def _use(self, block_id: int) -> None:
        self._kept.pop(block_id, None)
        self._num_users[block_id] += 1

    # --- what is computed ----------------------------------------------------------------------

    def record(self, request_id: str, token_ids: Sequence[int]) -> None:
        sequence = self._sequences[request_id]
        sequence.ids.extend(token_ids)
        if len(sequence.ids) >= (sequence.num_named + 1) * self.block_tokens:
            self._publish(sequence)

    def settle(self, copies: Sequence[Copy]) -> None:
        for request_id in self._copies.done_by(copies):
            self._forget_copy(request_id)

    def _publish(self, sequence: _Sequence) -> None:
        """Let others find the sequence's full blocks."""
        for number in range(sequence.num_named, len(sequence.ids) // self.block_tokens):
            start = number * self.block_tokens
            tokens = tuple(sequence.ids[start : start + self.block_tokens])
            sequence.name = self._tree.add(sequence.block_ids[number], sequence.name, tokens)
            sequence.num_named = number + 1

    # --- giving back ---------------------------------------------------------------------------

    def free(self, request_id: str, *, is_kept: bool) -> None:
        sequence = self._sequences.pop(request_id)
        is_complete = not self._forget_copy(request_id)
        if is_kept and is_complete:
            self._publish_end(sequence)
        if not is_kept:
            for block_id in sequence.block_ids:
                self._disown(block_id)
        for block_id in reversed(sequence.block_ids):  # a beginning outlives what follows it
            self._leave(block_id)
        self._free_slots.append(sequence.slot)
        self._freed_slots.append(sequence.slot)

    def drop_prefixes(self) -> None:
        for block_id in tuple(self._kept):
            self._disown(block_id)

    def _publish_end(self, sequence: _Sequence) -> None:
        """Let others find a last block that is not full: nobody will write into it any more."""
        start = sequence.num_named * self.block_tokens
        tokens = tuple(sequence.ids[start:])
        if tokens:
            self._tree.add(sequence.block_ids[sequence.num_named], sequence.name, tokens)

    def _forget_copy(self, request_id: str) -> bool:
        """Let go of the source of a sequence's pending copy; return whether there was one."""
        copy = self._copies.pop(request_id)
        if copy is not None:
            self._leave(copy.source)
        return copy is not None

    def _leave(self, block_id: int) -> None:
        self._num_users[block_id] -= 1
        if self._num_users[block_id]:
            return
        del self._num_users[block_id]
        if block_id in self._tree:
            self._kept[block_id] = None
        else:
            self._free_blocks.append(block_id)

    def _disown(self, block_id: int) -> None:
        """Let nobody find a block any more; those that have it in their tables keep it."""
        self._tree.remove(block_id)
        if block_id in self._kept:
            del self._kept[block_id]
            self._free_blocks.append(block_id)

    # --- the books themselves ------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every block is used, kept or free, and counted rightly."""
        tables = [sequence.block_ids for sequence in self._sequences.values()]
        users = Counter(block_id for table in tables for block_id in table)
        users.update(copy.source for copy in self._copies.all)
        if users != self._num_users:
            raise IntegrityError(f"blocks are counted as {self._num_users}, used by {users}")
        if sorted([*users, *self._kept, *self._free_blocks]) != list(range(self.num_blocks)):
            raise IntegrityError("a block is lost, or used and free at once")
        own = [block for s in self._sequences.values() for block in s.block_ids[s.num_shared :]]
        if len(set(own)) != len(own):
            raise IntegrityError("two sequences write into one block")
        slots = [sequence.slot for sequence in self._sequences.values()]
        if sorted([*slots, *self._free_slots]) != list(range(self._num_slots)):
            raise IntegrityError(f"slots {slots} and {self._free_slots} of {self._num_slots}")
        if not self._tree.is_consistent:
            raise IntegrityError("a block is known by contents that do not lead to it")
        if any(block not in self._tree for block in self._kept):
            raise IntegrityError("a block is kept that nobody can find")
        if any(block in self._tree for block in self._free_blocks):
            raise IntegrityError("an empty block can be found")
        if any(len(s.ids) > len(s.block_ids) * self.block_tokens for s in self._sequences.values()):
            raise IntegrityError("a sequence has more tokens than its blocks hold")


def _some(block_id: int | None) -> tuple[int, ...]:
    return () if block_id is None else (block_id,)
