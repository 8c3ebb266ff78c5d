"""Who may use how much of the KV cache: a slot per running sequence and a count of tokens.

The bookkeeping only: it knows no tensor, and it does not decide who is admitted or preempted.
"""

from dataclasses import dataclass


class IntegrityError(Exception):
    """The books do not add up: a slot or a token was leaked or given out twice."""


@dataclass(frozen=True, slots=True)
class Reservation:
    slot: int
    tokens: int


class SlotPool:
    """`num_slots` slots that share `capacity_tokens` tokens of KV cache."""

    def __init__(self, num_slots: int, capacity_tokens: int) -> None:
        if num_slots < 1 or capacity_tokens < 1:
            raise ValueError(f"a pool of {num_slots} slots and {capacity_tokens} tokens is useless")
        self.num_slots = num_slots
        self.capacity_tokens = capacity_tokens
        # Reversed, so that pop() hands out the lowest free slot first.
        self._free_slots = list(range(num_slots))[::-1]
        self._held: dict[str, Reservation] = {}

    @property
    def reserved_tokens(self) -> int:
        return sum(reservation.tokens for reservation in self._held.values())

    @property
    def free_tokens(self) -> int:
        return self.capacity_tokens - self.reserved_tokens

    @property
    def holders(self) -> frozenset[str]:
        return frozenset(self._held)

    def held_tokens(self, request_id: str) -> int:
        return self._held[request_id].tokens

    def allocate(self, request_id: str, tokens: int) -> int | None:
        """Reserve a slot and `tokens` tokens; return the slot, or None if they are not there."""
        if request_id in self._held:
            raise IntegrityError(f"{request_id} already holds a slot")
        if not self._free_slots or tokens > self.free_tokens:
            return None
        slot = self._free_slots.pop()
        self._held[request_id] = Reservation(slot, tokens)
        return slot

    def grow(self, request_id: str, tokens: int) -> bool:
        """Make the reservation at least `tokens` long; False, and no change, if it cannot be."""
        held = self._held[request_id]
        if tokens - held.tokens > self.free_tokens:
            return False
        self._held[request_id] = Reservation(held.slot, max(held.tokens, tokens))
        return True

    def free(self, request_id: str) -> int:
        """Give everything back; return the slot that is free again."""
        reservation = self._held.pop(request_id)
        self._free_slots.append(reservation.slot)
        return reservation.slot

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every slot is held once or free once and tokens suffice."""
        slots = [reservation.slot for reservation in self._held.values()] + self._free_slots
        if sorted(slots) != list(range(self.num_slots)):
            raise IntegrityError(f"slots {sorted(slots)} of {self.num_slots}")
        if self.free_tokens < 0:
            raise IntegrityError(f"{-self.free_tokens} tokens given out twice")
