"""The plan of a step, replayed on a table of plain numbers, leads to the sequences' own blocks."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.engine.cuda.paged_plan import (
    SCRATCH_BLOCKS,
    CacheOverrun,
    StepPlan,
    TableBook,
)
from neuron_agent.scheduling.batch import Batch, Chunk

SIZE = 4
NUM_SLOTS, NUM_BLOCKS = 3, 50


@dataclass
class Running:
    name: str
    length: int
    blocks: list[int]


@dataclass
class World:
    """Sequences with their blocks, and a table that is changed as plans say."""

    book: TableBook = field(default_factory=lambda: TableBook(NUM_SLOTS, NUM_BLOCKS, SIZE))
    table: dict[int, int] = field(default_factory=dict)
    running: dict[int, Running] = field(default_factory=dict)
    num_named: int = 0

    def start(self, slot: int, blocks: list[int]) -> None:
        """Another sequence takes a slot over, whether or not its end was told."""
        self.num_named += 1
        self.running[slot] = Running(f"r{self.num_named}", 0, list(blocks))

    def chunk(self, slot: int, num_tokens: int) -> Chunk:
        own = self.running[slot]
        room = len(own.blocks) * SIZE
        own.length = min(own.length + num_tokens, room)
        start = max(0, own.length - num_tokens)
        ids = tuple(range(own.length - start))
        return Chunk(own.name, slot, start, ids, room, len(ids) == 1, True, block_ids=own.blocks)

    def plan(self, chunks: list[Chunk], gather_tokens: int = 1000) -> StepPlan:
        plan = self.book.plan(Batch(tuple(chunks)), gather_tokens)
        self.table.update(zip(plan.new_cells, plan.new_blocks, strict=True))
        return plan

    def blocks_in_table(self, slot: int, num_blocks: int) -> list[int]:
        first = slot * self.book.width
        return [self.table[first + number] - SCRATCH_BLOCKS for number in range(num_blocks)]


slots = st.integers(0, NUM_SLOTS - 1)
blocks = st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=5)
events = st.one_of(
    st.tuples(st.just("start"), slots, blocks),
    st.tuples(st.just("forget"), slots, st.just([])),
    st.tuples(st.just("grow"), slots, blocks),
    st.tuples(st.just("step"), slots, st.just([])),
    st.tuples(st.just("prompt"), slots, st.just([])),
)


@given(st.lists(events, min_size=15, max_size=40))
def test_the_table_always_leads_a_step_to_its_sequences_blocks(
    story: list[tuple[str, int, list[int]]],
) -> None:
    world = World()
    for what, slot, some in story:
        if what == "start":
            world.start(slot, some)
        elif what == "forget":
            world.book.forget(slot)
        elif slot not in world.running:
            continue
        elif what == "grow":
            world.running[slot].blocks += some
        else:
            chunk = world.chunk(slot, 1 if what == "step" else 3)
            plan = world.plan([chunk])
            expected = world.running[slot].blocks
            assert world.blocks_in_table(slot, len(expected)) == expected
            assert [place // SIZE - SCRATCH_BLOCKS for place in plan.places] == [
                expected[position // SIZE] for position in range(chunk.start, chunk.end)
            ]
            assert [place % SIZE for place in plan.places] == [
                position % SIZE for position in range(chunk.start, chunk.end)
            ]


def test_a_sequence_that_decodes_sends_only_blocks_that_are_new() -> None:
    world = World()
    world.start(1, [7, 3])
    assert len(world.plan([world.chunk(1, 3)]).new_cells) == 2
    assert world.plan([world.chunk(1, 1)]).new_cells == []
    world.running[1].blocks.append(9)
    plan = world.plan([world.chunk(1, 1)])
    assert plan.new_cells == [world.book.width + 2]
    assert plan.new_blocks == [9 + SCRATCH_BLOCKS]
    assert world.plan([world.chunk(1, 1)]).new_cells == []


def test_a_sequence_that_comes_back_elsewhere_is_written_anew() -> None:
    world = World()
    world.start(0, [1, 2, 3])
    world.plan([world.chunk(0, 9)])
    for num_tokens, moved in [(1, [1, 2, 7, 8]), (3, [1, 5, 7, 8])]:
        world.running[0].blocks = moved
        world.plan([world.chunk(0, num_tokens)])
        assert world.blocks_in_table(0, 4) == moved


def test_another_sequence_that_looks_alike_at_a_glance_is_written_anew() -> None:
    world = World()
    world.start(0, [1, 2, 3])
    world.plan([world.chunk(0, 9)])
    world.start(0, [1, 5, 3])  # between shared blocks at both ends, one of its own
    world.plan([world.chunk(0, 1)])
    assert world.blocks_in_table(0, 3) == [1, 5, 3]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=8),
    st.integers(1, 60),
)
def test_groups_cover_all_rows_in_order_within_their_bound(
    pieces: list[tuple[int, int]], gather_tokens: int
) -> None:
    book = TableBook(len(pieces), 100, SIZE)
    chunks = [
        Chunk(str(slot), slot, start, tuple(range(n)), 100, n == 1, True, block_ids=range(25))
        for slot, (start, n) in enumerate(pieces)
    ]
    plan = book.plan(Batch(tuple(chunks)), gather_tokens)
    singles, rest = chunks[: plan.num_decode], chunks[plan.num_decode :]
    assert all(len(chunk.token_ids) == 1 for chunk in singles)
    assert not rest or len(rest[0].token_ids) > 1
    assert plan.lengths == [chunk.end for chunk in singles]
    spans = [span for group in plan.groups for span in zip(group.starts, group.ends, strict=True)]
    assert spans == [(chunk.start, chunk.end) for chunk in rest]
    row = plan.num_decode
    for group in plan.groups:
        assert group.first_row == row
        row += group.num_queries
        assert group.num_keys <= gather_tokens or len(group.ends) == 1
    assert row == len(plan.places) == sum(len(chunk.token_ids) for chunk in chunks)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk("r", 0, 0, (1,), 4, True, True, block_ids=[NUM_BLOCKS]),
        Chunk("r", 0, 0, (1,), 4, True, True, block_ids=[-1]),
        Chunk("r", NUM_SLOTS, 0, (1,), 4, True, True, block_ids=[0]),
        Chunk("r", 0, 4, (1,), 8, True, True, block_ids=[0]),
    ],
)
def test_what_the_cache_does_not_have_is_refused(chunk: Chunk) -> None:
    with pytest.raises(CacheOverrun):
        World().plan([chunk])
