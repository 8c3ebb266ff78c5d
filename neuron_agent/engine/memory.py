"""The books of one device's memory: which model claimed how much, and what is left to claim.

The books are what a load is checked against. On a CPU device they are the only limit; on a GPU
what the driver says is free caps them. It knows no torch: the driver's figures come in by a call.
"""

from collections.abc import Callable


class MemoryBooks:
    """`usable_bytes` says what this process may have on the device in all, as of now."""

    def __init__(self, usable_bytes: Callable[[], int]) -> None:
        self._usable_bytes = usable_bytes
        self._claims: dict[str, int] = {}

    @property
    def claimed_bytes(self) -> int:
        return sum(self._claims.values())

    @property
    def free_bytes(self) -> int:
        """What a further model may claim. KV memory that is claimed but not in use yet is taken."""
        return max(0, self._usable_bytes() - self.claimed_bytes)

    def claim(self, model_id: str, num_bytes: int) -> None:
        """Enter a claim. Raises ValueError if the model has one: it would be forgotten."""
        if model_id in self._claims:
            raise ValueError(f"{model_id} has a claim already")
        self._claims[model_id] = num_bytes

    def give_back(self, model_id: str) -> None:
        """Strike a model's claim out; nothing happens if it has none."""
        self._claims.pop(model_id, None)
