"""The paged cache gives what exact attention over each sequence alone gives."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.cuda.paged_cache import GATHER_TOKENS, DecodeBuffers, PagedCache
from neuron_agent.engine.cuda.paged_plan import CacheOverrun
from neuron_agent.scheduling.batch import Batch, Chunk, Copy

BLOCK_TOKENS = 4
HEADS, SHARED_HEADS, SIZE = 4, 2, 8
SCALE = SIZE**-0.5


@dataclass
class Sequence:
    """What went into the cache for one sequence, and where its blocks are."""

    slot: int
    blocks: list[int]
    keys: Tensor
    values: Tensor

    @classmethod
    def random(cls, slot: int, blocks: list[int], num_tokens: int) -> "Sequence":
        shape = num_tokens, SHARED_HEADS, SIZE
        return cls(slot, blocks, torch.randn(shape), torch.randn(shape))

    def chunk(self, start: int, end: int) -> Chunk:
        return Chunk(
            request_id=f"sequence-{self.slot}",
            slot=self.slot,
            start=start,
            token_ids=tuple(range(end - start)),
            reserved_tokens=len(self.blocks) * BLOCK_TOKENS,
            is_decode=end - start == 1,
            is_sampled=True,
            block_ids=self.blocks[: -(-end // BLOCK_TOKENS)],
        )


def new_cache(num_tokens: int = 400) -> PagedCache:
    cache = PagedCache(torch.device("cpu"), block_tokens=BLOCK_TOKENS)
    cache.reserve(num_tokens)
    return cache


def run(
    cache: PagedCache,
    pieces: list[tuple[Sequence, int, int]],
    query: Tensor,
    window: int | None = None,
    copies: tuple[Copy, ...] = (),
) -> Tensor:
    cache.begin(Batch(tuple(each.chunk(start, end) for each, start, end in pieces), copies))
    return attend(cache, pieces, query, window)


def attend(
    cache: PagedCache,
    pieces: list[tuple[Sequence, int, int]],
    query: Tensor,
    window: int | None = None,
) -> Tensor:
    keys = torch.cat([each.keys[start:end] for each, start, end in pieces])
    values = torch.cat([each.values[start:end] for each, start, end in pieces])
    return cache.attend(0, query, keys, values, SCALE, window)


def exact(
    pieces: list[tuple[Sequence, int, int]], query: Tensor, window: int | None = None
) -> Tensor:
    """Attention by its definition, token by token and head by head."""
    rows = []
    tokens = [(each, position) for each, start, end in pieces for position in range(start, end)]
    for (each, position), row in zip(tokens, query, strict=True):
        first = 0 if window is None else max(0, position - window + 1)
        heads = []
        for head in range(HEADS):
            shared = head * SHARED_HEADS // HEADS
            keys = each.keys[first : position + 1, shared]
            scores = (keys @ row[head]) / math.sqrt(SIZE)
            heads.append(scores.softmax(0) @ each.values[first : position + 1, shared])
        rows.append(torch.stack(heads))
    return torch.stack(rows)


def queries(num_tokens: int) -> Tensor:
    return torch.randn(num_tokens, HEADS, SIZE)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


@pytest.mark.parametrize("window", [None, 3, 8])
def test_chunks_and_single_tokens_of_many_sequences_attend_as_each_alone(
    window: int | None,
) -> None:
    cache = new_cache()
    one = Sequence.random(0, [7, 2, 9, 30, 31], 20)
    two = Sequence.random(3, [1, 0, 99], 12)
    three = Sequence.random(1, [50, 4, 60, 61], 15)
    steps = [
        [(one, 0, 7)],
        [(one, 7, 8), (two, 0, 9), (three, 0, 1)],
        [(one, 8, 9), (two, 9, 10), (three, 1, 12)],
        [(three, 12, 13), (one, 9, 10), (two, 10, 12)],
        [(two, 11, 12), (three, 13, 15), (one, 10, 20)],
    ]
    for pieces in steps:
        query = queries(sum(end - start for _, start, end in pieces))
        out = run(cache, pieces, query, window)
        torch.testing.assert_close(out, exact(pieces, query, window))


def test_shared_blocks_are_read_by_all_and_a_copied_one_is_written_by_one() -> None:
    cache = new_cache()
    one = Sequence.random(0, [5, 6], 8)
    run(cache, [(one, 0, 8)], queries(8))
    # The second shares block 5 and goes on from 6's first two tokens in a block of its own.
    two = Sequence.random(1, [5, 8], 8)
    two.keys[:6], two.values[:6] = one.keys[:6], one.values[:6]
    pieces = [(two, 6, 8)]
    query = queries(2)
    out = run(cache, pieces, query, copies=(Copy(6, 8, 2),))
    torch.testing.assert_close(out, exact(pieces, query))
    query = queries(1)
    again = [(one, 7, 8)]
    torch.testing.assert_close(run(cache, again, query), exact(again, query))


def test_copies_are_carried_out_in_their_order() -> None:
    cache = new_cache()
    one = Sequence.random(0, [5], 4)
    run(cache, [(one, 0, 3)], queries(3))
    two = replace(one, slot=1, blocks=[7])
    query = queries(1)
    out = run(cache, [(two, 3, 4)], query, copies=(Copy(5, 6, 4), Copy(6, 7, 4)))
    torch.testing.assert_close(out, exact([(two, 3, 4)], query))


def test_a_slot_taken_over_by_another_sequence_reads_its_own_blocks() -> None:
    cache = new_cache()
    old = Sequence.random(0, [1, 2, 3], 12)
    run(cache, [(old, 0, 11)], queries(11))
    run(cache, [(old, 11, 12)], queries(1))
    cache.release(0)
    new = Sequence.random(0, [9, 8], 8)
    run(cache, [(new, 0, 6)], queries(6))
    query = queries(1)
    torch.testing.assert_close(run(cache, [(new, 6, 7)], query), exact([(new, 6, 7)], query))


def test_a_sequence_moved_to_other_blocks_is_found_there() -> None:
    cache = new_cache()
    each = Sequence.random(0, [1, 2, 3], 12)
    run(cache, [(each, 0, 5)], queries(5))
    run(cache, [(each, 5, 6)], queries(1))
    each.blocks = [1, 6, 7]  # computed again, behind a first block that was kept
    run(cache, [(each, 4, 6)], queries(2))
    query = queries(1)
    torch.testing.assert_close(run(cache, [(each, 6, 7)], query), exact([(each, 6, 7)], query))


def test_repeating_a_step_gives_the_same() -> None:
    cache = new_cache()
    each = Sequence.random(0, [4, 2], 7)
    query = queries(7)
    first = run(cache, [(each, 0, 7)], query)
    torch.testing.assert_close(run(cache, [(each, 0, 7)], query), first)


@pytest.mark.parametrize("window", [None, 5])
def test_many_long_prompts_are_attended_in_groups(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuron_agent.engine.cuda.paged_cache.GATHER_TOKENS", 20)
    assert GATHER_TOKENS > 20
    cache = new_cache()
    many = [Sequence.random(slot, [4 * slot + at for at in range(4)], 16) for slot in range(5)]
    run(cache, [(each, 0, 9) for each in many], queries(45))
    pieces = [(each, 9, 9 + 2 + each.slot) for each in many]
    query = queries(sum(end - start for _, start, end in pieces))
    torch.testing.assert_close(run(cache, pieces, query, window), exact(pieces, query, window))


def test_a_batch_beyond_the_cache_is_refused_and_the_next_goes_on() -> None:
    cache = new_cache(num_tokens=16)
    fits = Sequence.random(0, [3, 0], 8)
    beyond = Sequence.random(1, [4], 4)
    pieces = [(fits, 0, 8), (beyond, 0, 2)]
    with pytest.raises(CacheOverrun, match="4"):
        run(cache, pieces, queries(10))
    with pytest.raises(CacheOverrun):
        run(cache, [(fits, 0, 7)], queries(7), copies=(Copy(0, 4, 1),))
    # What the refused step had noted of the first sequence does not count.
    query = queries(8)
    torch.testing.assert_close(run(cache, [(fits, 0, 8)], query), exact([(fits, 0, 8)], query))
    query = queries(1)
    torch.testing.assert_close(run(cache, [(fits, 7, 8)], query), exact([(fits, 7, 8)], query))


def test_a_failed_transfer_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache()
    each = Sequence.random(0, [3, 1, 2], 12)
    run(cache, [(each, 0, 8)], queries(8))
    run(cache, [(each, 7, 8)], queries(1))

    def fail(*_arguments: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_send", fail)
        with pytest.raises(torch.OutOfMemoryError):
            run(cache, [(each, 8, 9)], queries(1))
    query = queries(1)
    torch.testing.assert_close(run(cache, [(each, 8, 9)], query), exact([(each, 8, 9)], query))


def test_memory_is_as_reserved_and_given_back() -> None:
    cache = new_cache()
    assert (cache.token_bytes, cache.allocated_bytes) == (0, 0)
    each = Sequence.random(0, [0], 4)
    run(cache, [(each, 0, 4)], queries(4))
    assert cache.token_bytes == 2 * SHARED_HEADS * SIZE * 4
    cache.reserve(18)  # 5 blocks, and one for fillers
    assert cache.allocated_bytes == 6 * BLOCK_TOKENS * cache.token_bytes
    cache.clear()
    assert cache.allocated_bytes == 0


def test_more_slots_than_foreseen_are_made_room_for() -> None:
    cache = new_cache()
    each = Sequence.random(40, [3, 5], 8)
    run(cache, [(each, 0, 4)], queries(4))
    query = queries(1)
    torch.testing.assert_close(run(cache, [(each, 4, 5)], query), exact([(each, 4, 5)], query))


def test_a_table_that_found_no_memory_leaves_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = new_cache()
    each = Sequence.random(0, [3, 5], 8)
    run(cache, [(each, 0, 4)], queries(4))

    def fail(*_arguments: object, **_named: object) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    late = Sequence.random(40, [7], 4)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", fail)
        with pytest.raises(torch.OutOfMemoryError):
            run(cache, [(late, 0, 4)], queries(4))
    query = queries(4)
    torch.testing.assert_close(run(cache, [(late, 0, 4)], query), exact([(late, 0, 4)], query))
    query = queries(1)
    torch.testing.assert_close(run(cache, [(each, 4, 5)], query), exact([(each, 4, 5)], query))


def test_buffers_hold_a_batch_and_fillers_that_harm_nobody() -> None:
    cache = new_cache()
    one, two = Sequence.random(0, [7, 2], 8), Sequence.random(2, [0, 1], 8)
    run(cache, [(one, 0, 5), (two, 0, 3)], queries(8))
    buffers = DecodeBuffers(4, torch.device("cpu"))
    for step in range(3):
        pieces = [(two, 3 + step, 4 + step), (one, 5 + step, 6 + step)]
        cache.fill(buffers, Batch(tuple(each.chunk(start, end) for each, start, end in pieces)))
        cache.begin_filled(buffers)
        assert buffers.lengths.tolist() == [4 + step, 6 + step, 1, 1]
        query = queries(4)
        filler = Sequence.random(9, [], 2)
        out = attend(cache, [*pieces, (filler, 0, 2)], query)
        torch.testing.assert_close(out[:2], exact(pieces, query[:2]))
        assert torch.isfinite(out).all()
