"""The books of a cache with contiguous slots: one per sequence, and a count of tokens for all.

A sequence that ended leaves its slot as it is: a later prompt that begins alike takes the slot
over, or has the common rows copied into its own. Such a kept slot gives way, least recently used
first, as soon as its tokens or its slot are needed. Where a cache cannot be copied or cut
(`keeps_prefixes` is False), nothing is kept and nothing shared.

The bookkeeping only: it knows no tensor, and it does not decide who is admitted or preempted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from neuron_agent.scheduling.batch import Copy
from neuron_agent.scheduling.books import IntegrityError, PendingCopies, Place
from neuron_agent.scheduling.prefix_index import (
    PIECE_TOKENS,
    PrefixIndex,
    next_key,
    num_common,
    pieces_of,
)

MORE_SLOTS = 16
"""Slots beyond two for each running sequence, all for what is kept."""

MOST_TIMES_TOO_LARGE = 4
"""How much larger than asked for a kept slot may be to be taken over."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A slot in use: held by a running sequence or, without a holder, kept for reuse."""

    number: int
    tokens: int
    """How many tokens of the capacity it takes; its contents and its memory are never more."""
    holder: str | None
    ids: list[int] = field(default_factory=list)
    """The tokens whose keys and values are in it, or will be by its pending copy."""
    keys: list[int] = field(default_factory=list)
    """What it is known by in the prefix index; none: nobody may copy from it."""


class SlotPool:
    """At most `max_running` sequences that share `capacity_tokens` tokens of KV cache."""

    def __init__(
        self, max_running: int, capacity_tokens: int, *, keeps_prefixes: bool = True
    ) -> None:
        if max_running < 1 or capacity_tokens < 1:
            raise ValueError(f"{max_running} sequences in {capacity_tokens} tokens are no pool")
        self.capacity_tokens = capacity_tokens
        self.max_running = max_running
        self.num_slots = 2 * max_running + MORE_SLOTS if keeps_prefixes else max_running
        self._keeps_prefixes = keeps_prefixes
        # Reversed, so that pop() hands out the lowest free slot first.
        self._free_slots = list(range(self.num_slots))[::-1]
        self._in_use: dict[int, _Slot] = {}
        self._held: dict[str, _Slot] = {}
        self._kept: dict[int, _Slot] = {}  # least recently used first
        self._held_tokens = 0
        self._kept_tokens = 0
        self._index = PrefixIndex()
        self._copies = PendingCopies()
        self._freed_slots: list[int] = []

    @property
    def used_tokens(self) -> int:
        return self._held_tokens

    @property
    def holders(self) -> frozenset[str]:
        return frozenset(self._held)

    @property
    def copies(self) -> tuple[Copy, ...]:
        return self._copies.all

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def held_tokens(self, request_id: str) -> int:
        return self._held[request_id].tokens

    def take_freed_slots(self) -> tuple[int, ...]:
        freed = tuple(self._freed_slots)
        self._freed_slots.clear()
        return freed

    # --- taking --------------------------------------------------------------------------------

    def allocate(self, request_id: str, ids: Sequence[int], tokens: int) -> Place | None:
        """See KvPool. The cheapest way that there is room for:

        1. take over a kept slot that is of little use to others,
        2. copy the common rows into a slot of its own,
        3. take over a kept slot all the same: it would have to go anyway,
        4. an empty slot.
        """
        if request_id in self._held:
            raise IntegrityError(f"{request_id} already holds a slot")
        if len(self._held) == self.max_running:
            return None
        source, num_shared = self._find_prefix(ids)
        if source is None:
            return self._place_anew(request_id, tokens)
        is_whole = len(source.ids) - num_shared < PIECE_TOKENS
        return (
            (self._take_over(request_id, source, num_shared, tokens) if is_whole else None)
            or self._place_copy(request_id, source, num_shared, tokens)
            or self._take_over(request_id, source, num_shared, tokens)
            or self._place_anew(request_id, tokens)
        )

    def grow(self, request_id: str, tokens: int) -> bool:
        slot = self._held[request_id]
        more = max(0, tokens - slot.tokens)
        if not self._make_room(more):
            return False
        slot.tokens += more
        self._held_tokens += more
        return True

    def _find_prefix(self, ids: Sequence[int]) -> tuple[_Slot | None, int]:
        """Return the slot that shares most with `ids`, and how many tokens it really shares."""
        usable = ids[:-1]  # the last token is computed in any case: its logits are asked for
        depth, candidates = self._index.deepest(usable)
        best: _Slot | None = None
        most = 0
        for slot in (self._in_use[number] for number in candidates):
            num_shared = num_common(usable, slot.ids, depth)
            is_better_kind = best is not None and best.holder is not None and slot.holder is None
            if num_shared > most or (num_shared == most and is_better_kind):
                best, most = slot, num_shared
        if best is None or tuple(best.ids[:most]) != tuple(usable[:most]):
            return None, 0  # two different pieces had the same hash: as good as not found
        return best, most

    def _take_over(
        self, request_id: str, slot: _Slot, num_shared: int, tokens: int
    ) -> Place | None:
        """Go on in a kept slot; its memory stays as large as it is, so it still counts for that.

        Not in one that is far too large: the room it blocks would keep others waiting.
        """
        if slot.holder is not None or slot.number in self._copies.sources:
            return None
        if slot.tokens > MOST_TIMES_TOO_LARGE * tokens:
            return None
        if not self._make_room(max(0, tokens - slot.tokens), spared=slot):
            return None
        self._unkeep(slot)
        self._cut(slot, num_shared)
        slot.tokens = max(slot.tokens, tokens)
        return self._hold(request_id, slot)

    def _place_copy(
        self, request_id: str, source: _Slot, num_shared: int, tokens: int
    ) -> Place | None:
        if not self._make_room(tokens, num_slots=1, spared=source):
            return None
        if source.holder is None:  # used again: last in line to go
            self._kept[source.number] = self._kept.pop(source.number)
        target = _Slot(self._free_slots.pop(), tokens, None, ids=source.ids[:num_shared])
        self._copies.add(request_id, Copy(source.number, target.number, num_shared))
        return self._hold(request_id, target)

    def _place_anew(self, request_id: str, tokens: int) -> Place | None:
        if not self._make_room(tokens, num_slots=1):
            return None
        return self._hold(request_id, _Slot(self._free_slots.pop(), tokens, None))

    def _hold(self, request_id: str, slot: _Slot) -> Place:
        slot.holder = request_id
        self._in_use[slot.number] = self._held[request_id] = slot
        self._held_tokens += slot.tokens
        return Place(slot.number, len(slot.ids))

    # --- what is computed ----------------------------------------------------------------------

    def record(self, request_id: str, token_ids: Sequence[int]) -> None:
        slot = self._held[request_id]
        slot.ids.extend(token_ids)
        if self._keeps_prefixes:
            self._publish(slot)

    def settle(self, copies: Sequence[Copy]) -> None:
        for request_id in self._copies.done_by(copies):
            self._forget_copy(request_id)

    def _publish(self, slot: _Slot) -> None:
        """Let others find what the slot has. Nothing is recorded before its copy is settled."""
        num_known = len(slot.keys) * PIECE_TOKENS
        if len(slot.ids) - num_known < PIECE_TOKENS:
            return
        key = slot.keys[-1] if slot.keys else 0
        keys = [key := next_key(key, piece) for piece in pieces_of(slot.ids, num_known)]
        self._index.add(slot.number, keys)
        slot.keys += keys

    def _forget_copy(self, request_id: str) -> None:
        copy = self._copies.pop(request_id)
        source = self._kept.get(copy.source) if copy else None
        if source is not None and not source.keys and source.number not in self._copies.sources:
            self._evict(source)  # it was only there to be copied from

    # --- giving back ---------------------------------------------------------------------------

    def free(self, request_id: str, *, is_kept: bool) -> None:
        slot = self._held.pop(request_id)
        self._held_tokens -= slot.tokens
        slot.holder = None
        self._forget_copy(request_id)
        if not is_kept:
            self._disown(slot)
        is_read = slot.number in self._copies.sources
        if slot.keys or is_read:  # without keys: not computed yet, too short, or gone wrong
            self._kept[slot.number] = slot
            self._kept_tokens += slot.tokens
        else:
            self._give_back(slot)

    def drop_prefixes(self) -> None:
        for slot in tuple(self._kept.values()):
            self._hide(slot)
            if slot.number not in self._copies.sources:
                self._evict(slot)

    def _disown(self, slot: _Slot) -> None:
        """Trust neither a slot that went wrong nor those that share its beginnings."""
        alike = {number for key in slot.keys for number in self._index.slots_with(key)}
        for number in alike:
            suspect = self._in_use[number]
            self._hide(suspect)
            if number in self._kept and number not in self._copies.sources:
                self._evict(suspect)

    def _hide(self, slot: _Slot) -> None:
        self._index.remove(slot.number, slot.keys)
        slot.keys.clear()

    def _cut(self, slot: _Slot, num_tokens: int) -> None:
        num_keys = num_tokens // PIECE_TOKENS
        self._index.remove(slot.number, slot.keys[num_keys:])
        del slot.keys[num_keys:], slot.ids[num_tokens:]

    def _make_room(self, tokens: int, num_slots: int = 0, spared: _Slot | None = None) -> bool:
        """Evict kept slots until there is room; False, and nothing evicted, if that cannot be."""
        missing = tokens - (self.capacity_tokens - self._held_tokens - self._kept_tokens)
        missing_slots = num_slots - len(self._free_slots)
        if missing <= 0 and missing_slots <= 0:
            return True
        victims = []
        for slot in self._kept.values():
            if missing <= 0 and missing_slots <= 0:
                break
            if slot is not spared and slot.number not in self._copies.sources:
                victims.append(slot)
                missing, missing_slots = missing - slot.tokens, missing_slots - 1
        if missing > 0 or missing_slots > 0:
            return False
        for slot in victims:
            self._evict(slot)
        return True

    def _evict(self, slot: _Slot) -> None:
        self._unkeep(slot)
        self._give_back(slot)

    def _unkeep(self, slot: _Slot) -> None:
        del self._kept[slot.number]
        self._kept_tokens -= slot.tokens

    def _give_back(self, slot: _Slot) -> None:
        self._hide(slot)
        del self._in_use[slot.number]
        self._free_slots.append(slot.number)
        self._freed_slots.append(slot.number)

    # --- the books themselves ------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every slot is held, kept or free, and the sums are right."""
        if sorted([*self._in_use, *self._free_slots]) != list(range(self.num_slots)):
            raise IntegrityError(f"{self.num_slots} slots: {self._in_use} {self._free_slots}")
        held = {slot.number: slot for slot in self._held.values()}
        if {**held, **self._kept} != self._in_use or held.keys() & self._kept.keys():
            raise IntegrityError("a slot in use is neither held nor kept, or both")
        if any(slot.holder != request_id for request_id, slot in self._held.items()):
            raise IntegrityError("a slot is held by another than it says")
        sums = [sum(slot.tokens for slot in used.values()) for used in (held, self._kept)]
        if sums != [self._held_tokens, self._kept_tokens] or sum(sums) > self.capacity_tokens:
            raise IntegrityError(f"{sums} tokens of {self.capacity_tokens} in use")
        if any(len(slot.ids) > slot.tokens for slot in self._in_use.values()):
            raise IntegrityError("a slot contains more than it takes")
        known = {(key, slot.number) for slot in self._in_use.values() for key in slot.keys}
        if known != self._index.entries or not self._copies.sources <= self._in_use.keys():
            raise IntegrityError("the prefix index or a copy names a slot that is not in use")
