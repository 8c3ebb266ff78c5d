"""A model that is a function: the next token depends on what its cache holds, and on nothing else.

It writes, copies and reads its cache cell by cell and literally, as a real one does: a wrong block
table, a copy in the wrong order, a source that was rewritten, or a stale prefix gives wrong tokens
or hits an empty cell. It also complains when a sequence outgrows what it reserved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from neuron_agent.scheduling.pool import KvLayout

VOCABULARY_SIZE = 50
STOP_ID = 7

Cell = tuple[int, int]  # (slot or block, place in it)


def next_token(ids: Iterable[int]) -> int:
    state = 17
    for token in ids:
        state = (state * 31 + token + 1) % 10_007
    return state % VOCABULARY_SIZE


def generate_alone(prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int]) -> list[int]:
    """What a request must give, whatever else runs: its tokens, a stop token included."""
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(next_token(ids))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


@dataclass(frozen=True)
class Results:
    tokens: dict[str, int]
    embeddings: dict[str, int]


class ToyModel:
    def __init__(self, layout: KvLayout = KvLayout.SLOTS, block_tokens: int = 1) -> None:
        self._layout = layout
        self._block_tokens = block_tokens
        self._cells: dict[Cell, int] = {}

    def compute(self, batch: Batch, most_chunks: int | None = None) -> Results:
        """Copy, then compute. With `most_chunks` the step fails after so many chunks."""
        for copy in batch.copies:
            self._copy(copy)
        results = Results({}, {})
        for chunk in batch.chunks[:most_chunks]:
            self._write(chunk)
            if chunk.is_sampled or chunk.is_embedded:
                kind = results.tokens if chunk.is_sampled else results.embeddings
                kind[chunk.request_id] = next_token(
                    self._cells[self._cell(chunk, position)] for position in range(chunk.end)
                )
        return results

    def release(self, slots: Iterable[int]) -> None:
        if self._layout is KvLayout.BLOCKS:
            return  # blocks are not kept by slot
        gone = frozenset(slots)
        self._cells = {cell: token for cell, token in self._cells.items() if cell[0] not in gone}

    @property
    def held_slots(self) -> set[int]:
        return {slot for slot, _ in self._cells}

    def _cell(self, chunk: Chunk, position: int) -> Cell:
        if self._layout is not KvLayout.BLOCKS:
            return chunk.slot, position
        return chunk.block_ids[position // self._block_tokens], position % self._block_tokens

    def _write(self, chunk: Chunk) -> None:
        assert chunk.end <= chunk.reserved_tokens, "more tokens than were reserved"
        for position, token in enumerate(chunk.token_ids, chunk.start):
            self._cells[self._cell(chunk, position)] = token

    def _copy(self, copy: Copy) -> None:
        assert self._layout is not KvLayout.PRIVATE, "a state that cannot be copied"
        for place in range(copy.num_tokens):
            self._cells[copy.target, place] = self._cells[copy.source, place]
