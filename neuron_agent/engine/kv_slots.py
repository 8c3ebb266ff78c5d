"""Keys and values of running sequences: contiguous tensors per slot and layer.

A slot's tensors grow by doubling, but never past the tokens that the scheduler's books give the
sequence: memory follows use, and all slots together stay within the books. It knows neither
requests nor attention.
"""

from torch import Tensor

from neuron_agent.scheduling.batch import Chunk

FIRST_TOKENS = 64


class KvSlots:
    """Storage by slot and layer. Writing at position 0 starts a slot anew."""

    def __init__(self) -> None:
        self._keys: dict[tuple[int, int], Tensor] = {}  # (slot, layer) -> [Hkv, capacity, D]
        self._values: dict[tuple[int, int], Tensor] = {}

    def append(
        self, chunk: Chunk, layer: int, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store a chunk's keys and values [Hkv, n, D]; return the sequence's up to their end.

        Writing a position again replaces it: a step that failed half-way can be repeated.
        """
        place = chunk.slot, layer
        return (
            _write(self._keys, place, chunk, keys),
            _write(self._values, place, chunk, values),
        )

    def release(self, slot: int) -> None:
        """Forget a slot; its memory is free again."""
        for store in (self._keys, self._values):
            for place in [place for place in store if place[0] == slot]:
                del store[place]

    def clear(self) -> None:
        self._keys.clear()
        self._values.clear()

    @property
    def num_slots(self) -> int:
        """Slots that hold anything."""
        return len({slot for slot, _ in self._keys})

    @property
    def allocated_bytes(self) -> int:
        stores = (*self._keys.values(), *self._values.values())
        return sum(tensor.nbytes for tensor in stores)

    def token_bytes(self, slot: int) -> int:
        """Bytes that one token takes over all layers, as measured on a slot in use."""
        stores = (self._keys, self._values)
        return sum(
            tensor.nbytes // tensor.shape[1]
            for store in stores
            for place, tensor in store.items()
            if place[0] == slot
        )


def _write(
    store: dict[tuple[int, int], Tensor], place: tuple[int, int], chunk: Chunk, new: Tensor
) -> Tensor:
    held = store.get(place)
    if held is None or held.shape[1] < chunk.end:
        held = store[place] = _grown(held, chunk, new)
    held[:, chunk.start : chunk.end] = new
    return held[:, : chunk.end]


def _grown(held: Tensor | None, chunk: Chunk, new: Tensor) -> Tensor:
    """Return a larger tensor that begins with what is held before the chunk."""
    capacity = FIRST_TOKENS if held is None else held.shape[1]
    while capacity < chunk.end:
        capacity *= 2
    capacity = max(chunk.end, min(capacity, chunk.reserved_tokens))
    grown = new.new_empty(new.shape[0], capacity, new.shape[2])
    if held is not None:
        grown[:, : chunk.start] = held[:, : chunk.start]
    return grown
