import pytest

from neuron_agent.scheduling.batch import Copy
from neuron_agent.scheduling.blocks import BlockPool
from neuron_agent.scheduling.books import IntegrityError, Place

SIZE = 4
LONG = tuple(range(100, 118))  # four blocks and a half


def make_pool(num_blocks: int = 20, max_running: int = 3) -> BlockPool:
    return BlockPool(max_running, num_blocks * SIZE, SIZE)


def take(pool: BlockPool, name: str, ids: tuple[int, ...], tokens: int | None = None) -> Place:
    """Allocate and compute all of `ids`, as a step would."""
    place = pool.allocate(name, ids, tokens or len(ids))
    assert place is not None
    pool.settle(pool.copies)
    pool.record(name, ids[place.num_cached :])
    pool.check_integrity()
    return place


def test_a_capacity_that_is_no_whole_number_of_blocks_is_rounded_down() -> None:
    assert BlockPool(1, 11, SIZE).capacity_tokens == 8


def test_whole_blocks_are_shared_and_the_first_that_differs_is_copied() -> None:
    pool = make_pool()
    first = take(pool, "a", LONG)
    place = pool.allocate("b", (*LONG[:11], 1, 2), 13)
    assert place is not None
    assert list(place.block_ids[:2]) == list(first.block_ids[:2])
    assert not set(place.block_ids[2:]) & set(first.block_ids)
    assert pool.copies == (Copy(first.block_ids[2], place.block_ids[2], 3),)
    assert place.num_cached == 11
    assert pool.used_tokens == (5 + 2) * SIZE


def test_the_last_block_of_a_sequence_that_ended_is_shared_though_it_is_not_full() -> None:
    pool = make_pool()
    first = take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    place = pool.allocate("b", (*LONG, 1), 20)
    assert place is not None
    assert place.num_cached == len(LONG)
    assert pool.copies == (Copy(first.block_ids[4], place.block_ids[4], 2),)


def test_a_running_sequence_s_last_block_is_its_own_until_it_is_full() -> None:
    pool = make_pool()
    take(pool, "a", LONG, tokens=30)
    assert pool.allocate("b", (*LONG, 1), 20) is not None
    assert pool.copies == ()
    pool.record("a", (5, 6))
    place = pool.allocate("c", (*LONG, 5, 6, 7), 24)
    assert place is not None
    assert place.num_cached == 20


def test_the_table_grows_in_place() -> None:
    pool = make_pool()
    place = take(pool, "a", LONG)
    assert pool.grow("a", 30)
    assert len(place.block_ids) == 8
    assert not pool.grow("a", 21 * SIZE)
    assert len(place.block_ids) == 8


def test_ends_give_way_before_beginnings() -> None:
    pool = make_pool(num_blocks=6)
    take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    pool.allocate("b", (1,), 3 * SIZE)
    place = pool.allocate("c", LONG, 12)
    assert place is not None
    assert place.num_cached == 12, "three of its five blocks are left"


def test_without_room_for_source_and_copy_whole_blocks_are_still_shared() -> None:
    pool = make_pool(num_blocks=5)
    take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    place = pool.allocate("b", (*LONG, 1), 20)
    assert place is not None
    assert place.num_cached == 16
    assert pool.copies == ()
    pool.check_integrity()


def test_a_source_stays_until_it_was_copied() -> None:
    pool = make_pool(num_blocks=6)
    take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    pool.allocate("b", (*LONG, 1), 20)
    assert not pool.grow("b", 6 * SIZE)
    pool.settle(pool.copies)
    assert pool.grow("b", 6 * SIZE)
    pool.check_integrity()


def test_what_is_not_copied_yet_is_not_offered_to_others() -> None:
    pool = make_pool()
    take(pool, "a", LONG)
    pool.allocate("b", (*LONG[:11], 1, 2), 13)
    pool.free("b", is_kept=True)
    pool.free("a", is_kept=False)
    pool.check_integrity()
    assert pool.num_kept == 0, "two blocks were not its own, the third is empty"


def test_blocks_computed_twice_are_kept_once() -> None:
    pool = make_pool()
    for name in "ab":  # at the same time: neither finds the other's
        pool.allocate(name, LONG, 18)
    for name in "ab":
        pool.record(name, LONG)
        pool.check_integrity()
    for name in "ab":
        pool.free(name, is_kept=True)
    assert pool.num_kept == 5
    pool.check_integrity()


def test_what_went_wrong_is_found_by_nobody_though_others_still_have_it() -> None:
    pool = make_pool()
    take(pool, "a", LONG)
    second = take(pool, "b", (*LONG, 1, 2))
    pool.free("a", is_kept=False)
    pool.check_integrity()
    place = pool.allocate("c", LONG, 18)
    assert place is not None
    assert place.num_cached == 0
    assert not set(place.block_ids) & set(second.block_ids)


def test_a_request_cannot_hold_two_tables() -> None:
    pool = make_pool()
    pool.allocate("a", (1,), 1)
    with pytest.raises(IntegrityError):
        pool.allocate("a", (1,), 1)


@pytest.mark.parametrize(
    "harm",
    [
        lambda pool: pool._sequences.clear(),
        lambda pool: pool._sequences["b"].block_ids.append(pool._sequences["a"].block_ids[0]),
        lambda pool: pool._free_blocks.pop(),
        lambda pool: pool._free_slots.pop(),
        lambda pool: pool._free_blocks.append(pool._sequences["a"].block_ids[0]),
        lambda pool: pool._tree.remove(next(iter(pool._kept))),
        lambda pool: pool._tree._children.clear(),
        lambda pool: pool._tree.add(pool._free_blocks[0], 0, (8, 8, 8, 8)),
        lambda pool: pool._sequences["a"].ids.extend(range(99)),
    ],
)
def test_integrity_sees_harm(harm: object) -> None:
    pool = make_pool()
    take(pool, "gone", (1, 2, 3, 4, 5))
    pool.free("gone", is_kept=True)
    take(pool, "a", LONG)
    take(pool, "b", (9, 9, 9))
    assert callable(harm)
    harm(pool)
    with pytest.raises(IntegrityError):
        pool.check_integrity()


def test_integrity_sees_two_writers_of_one_block() -> None:
    pool = make_pool()
    take(pool, "a", LONG)
    take(pool, "b", LONG)
    pool._sequences["b"].num_shared = 0
    with pytest.raises(IntegrityError, match="two sequences"):
        pool.check_integrity()
