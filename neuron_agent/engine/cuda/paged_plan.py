"""Where a step's tokens lie in a paged cache: integers in, integers out.

Sequences hand in their blocks' numbers; the device holds them in one table with a row for each
slot. This file knows what that table holds already, so that a step sends what is new and no more.
It knows no tensor, no layer and no request beyond its name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from neuron_agent.scheduling.batch import Batch, Chunk

SCRATCH_BLOCKS = 1
"""Block 0 of the memory is nobody's: rows that only fill a captured step up write there, and what
they read is of no interest."""


@dataclass(frozen=True, slots=True)
class PrefillGroup:
    """Chunks of several tokens that are attended together: as many as gathering has room for."""

    first_row: int
    """The step's row that holds the first of their tokens."""
    slots: tuple[int, ...]
    starts: tuple[int, ...]
    """How many tokens each sequence had before."""
    ends: tuple[int, ...]

    @property
    def num_queries(self) -> int:
        return sum(self.ends) - sum(self.starts)

    @property
    def num_keys(self) -> int:
        return sum(self.ends)

    @property
    def is_fresh(self) -> bool:
        """Nothing was there before: the step's own keys are all that there are."""
        return not any(self.starts)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step in numbers. The first `num_decode` rows are single tokens."""

    places: list[int]
    """For each token, where its keys and values go: block times block size plus offset."""
    num_decode: int
    slots: list[int]
    """For each single token, its sequence's slot: its row in the table."""
    lengths: list[int]
    """For each single token, how long its sequence is with it."""
    groups: tuple[PrefillGroup, ...]
    new_cells: list[int]
    """Cells of the table (row times width plus column) to be written, and with what."""
    new_blocks: list[int]


class CacheOverrun(ValueError):
    """A batch names blocks or slots that the cache does not have: the books disagree with it."""


@dataclass(slots=True)
class _Known:
    """What the device's table holds in one row."""

    request_id: str
    blocks: list[int] = field(default_factory=list)


class TableBook:
    """Knows the device's block table of `num_slots` sequences, `width` blocks each at most."""

    def __init__(self, num_slots: int, num_blocks: int, block_tokens: int) -> None:
        self.num_slots = num_slots
        self.num_blocks = num_blocks
        """The sequences' blocks; in memory the scratch block comes before them."""
        self.width = max(1, num_blocks)
        self._block_tokens = block_tokens
        self._known: dict[int, _Known] = {}

    def forget(self, slot: int) -> None:
        """A slot's sequence has gone."""
        self._known.pop(slot, None)

    def check_blocks(self, blocks: Sequence[int]) -> None:
        """Raise CacheOverrun if the cache does not have these blocks."""
        if min(blocks) < 0 or max(blocks) >= self.num_blocks:
            raise CacheOverrun(
                f"blocks {min(blocks)} to {max(blocks)} of a cache of {self.num_blocks}"
            )

    def plan(self, batch: Batch, gather_tokens: int) -> StepPlan:
        """Lay a step out. Raises CacheOverrun. The caller forgets the batch's slots if the table
        does not come to hold what the plan says.

        1. What the table does not know yet of the sequences' blocks.
        2. The place of each new token.
        3. Single tokens at the front are decoded; the rest is attended in groups, each with at
           most `gather_tokens` keys unless a single chunk has more.
        """
        cells: list[int] = []
        blocks: list[int] = []
        places: list[int] = []
        for chunk in batch.chunks:
            self._learn(chunk, cells, blocks)
            places += self._places(chunk)
        num_decode = _leading_singles(batch.chunks)
        singles = batch.chunks[:num_decode]
        return StepPlan(
            places=places,
            num_decode=num_decode,
            slots=[chunk.slot for chunk in singles],
            lengths=[chunk.end for chunk in singles],
            groups=tuple(_groups(batch.chunks[num_decode:], num_decode, gather_tokens)),
            new_cells=cells,
            new_blocks=blocks,
        )

    def _learn(self, chunk: Chunk, cells: list[int], blocks: list[int]) -> None:
        """Add to `cells` and `blocks` what the table lacks of a chunk's sequence.

        A sequence that decodes only ever gains blocks at its end. Whatever else comes (a prompt,
        a sequence computed again, another one in the same slot) is written from the start.
        """
        known = self._known.get(chunk.slot)
        if known is None or not chunk.is_decode or not _goes_on(known, chunk):
            known = self._known[chunk.slot] = _Known(chunk.request_id)
        num_known = len(known.blocks)
        if len(chunk.block_ids) == num_known:
            return
        fresh = list(chunk.block_ids[num_known:])
        self.check_blocks(fresh)
        if not 0 <= chunk.slot < self.num_slots:
            raise CacheOverrun(f"slot {chunk.slot} of {self.num_slots}")
        first_cell = chunk.slot * self.width + num_known
        cells += range(first_cell, first_cell + len(fresh))
        blocks += [block + SCRATCH_BLOCKS for block in fresh]
        known.blocks += fresh

    def _places(self, chunk: Chunk) -> Iterator[int]:
        size = self._block_tokens
        if chunk.end > len(chunk.block_ids) * size:
            raise CacheOverrun(f"{chunk.request_id} has more tokens than its blocks hold")
        for position in range(chunk.start, chunk.end):
            block = chunk.block_ids[position // size] + SCRATCH_BLOCKS
            yield block * size + position % size


def _goes_on(known: _Known, chunk: Chunk) -> bool:
    """Whether the table's row is the beginning of the chunk's blocks, as far as a glance tells."""
    num_known = len(known.blocks)
    return (
        known.request_id == chunk.request_id
        and 0 < num_known <= len(chunk.block_ids)
        and known.blocks[0] == chunk.block_ids[0]
        and known.blocks[-1] == chunk.block_ids[num_known - 1]
    )


def _leading_singles(chunks: Sequence[Chunk]) -> int:
    for index, chunk in enumerate(chunks):
        if len(chunk.token_ids) != 1:
            return index
    return len(chunks)


def _groups(chunks: Sequence[Chunk], first_row: int, gather_tokens: int) -> Iterator[PrefillGroup]:
    """Cut chunks into groups, in order; a chunk with more keys than that is one by itself."""
    held: list[Chunk] = []
    for chunk in chunks:
        if held and sum(each.end for each in held) + chunk.end > gather_tokens:
            group = _group(held, first_row)
            yield group
            first_row += group.num_queries
            held = []
        held.append(chunk)
    if held:
        yield _group(held, first_row)


def _group(chunks: Sequence[Chunk], first_row: int) -> PrefillGroup:
    return PrefillGroup(
        first_row=first_row,
        slots=tuple(chunk.slot for chunk in chunks),
        starts=tuple(chunk.start for chunk in chunks),
        ends=tuple(chunk.end for chunk in chunks),
    )
