import pytest

from neuron_agent.scheduling.batch import Copy
from neuron_agent.scheduling.books import IntegrityError, Place
from neuron_agent.scheduling.slots import SlotPool

LONG = tuple(range(100, 164))


def make_pool(capacity_tokens: int = 200, max_running: int = 3) -> SlotPool:
    return SlotPool(max_running, capacity_tokens)


def take(pool: SlotPool, name: str, ids: tuple[int, ...], tokens: int | None = None) -> Place:
    """Allocate and compute all of `ids`, as a step would."""
    place = pool.allocate(name, ids, tokens or len(ids))
    assert place is not None
    pool.settle(pool.copies)
    pool.record(name, ids[place.num_cached :])
    pool.check_integrity()
    return place


def test_nothing_is_given_beyond_sequences_or_tokens() -> None:
    pool = SlotPool(max_running=2, capacity_tokens=10)
    assert pool.allocate("a", (1,), 6) is not None
    assert pool.allocate("b", (1,), 5) is None
    assert pool.allocate("b", (1,), 4) is not None
    pool.free("a", is_kept=False)
    assert pool.allocate("c", (1,), 1) is not None
    assert pool.allocate("d", (1,), 1) is None, "two are running"


def test_growing_takes_what_is_free_or_changes_nothing() -> None:
    pool = SlotPool(max_running=2, capacity_tokens=10)
    pool.allocate("a", (1,), 4)
    pool.allocate("b", (1,), 3)
    assert pool.grow("a", 7)
    assert not pool.grow("b", 4)
    assert pool.held_tokens("b") == 3
    assert pool.grow("b", 2)
    assert pool.held_tokens("b") == 3, "a reservation never shrinks"


def test_a_request_cannot_hold_two_slots() -> None:
    pool = make_pool()
    pool.allocate("a", (1,), 1)
    with pytest.raises(IntegrityError):
        pool.allocate("a", (1,), 1)


def test_a_long_text_that_ended_does_not_keep_short_ones_with_its_beginning_waiting() -> None:
    pool = make_pool(capacity_tokens=1000, max_running=12)
    take(pool, "long", (*LONG, *range(900, 1800)))
    pool.free("long", is_kept=True)
    for number in range(12):
        take(pool, f"short {number}", (*LONG, number), tokens=80)
    assert pool.used_tokens <= 1000


def test_a_kept_slot_that_is_used_up_is_taken_over() -> None:
    pool = make_pool()
    first = take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    place = pool.allocate("b", (*LONG, 1, 2), 70)
    assert place == Place(first.slot, len(LONG))
    assert pool.copies == ()
    assert (pool.used_tokens, pool.num_kept) == (70, 0)


def test_a_kept_slot_that_others_may_want_is_copied_from() -> None:
    pool = make_pool()
    first = take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    place = pool.allocate("b", (*LONG[:35], 1, 2), 40)
    assert place is not None
    assert place.slot != first.slot
    assert pool.copies == (Copy(first.slot, place.slot, 35),)
    assert (pool.used_tokens, pool.num_kept) == (40, 1)


def test_without_room_for_a_copy_the_kept_slot_is_taken_over_as_it_is() -> None:
    pool = make_pool(capacity_tokens=90)
    first = take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    place = pool.allocate("b", (*LONG[:35], 1, 2), 40)
    assert place == Place(first.slot, 35)
    assert pool.held_tokens("b") == len(LONG), "its memory is as large as it was"
    assert pool._in_use[first.slot].ids == list(LONG[:35])


def test_a_slot_that_is_being_copied_from_is_neither_taken_over_nor_evicted() -> None:
    pool = make_pool(capacity_tokens=140)
    first = take(pool, "a", LONG)
    pool.free("a", is_kept=True)
    pool.allocate("b", (*LONG[:35], 1, 2), 40)
    assert pool.allocate("c", LONG, 70) is None
    place = pool.allocate("c", (*LONG, 1), 36)
    assert place is not None
    assert place.slot != first.slot
    pool.settle(pool.copies)
    assert pool.grow("c", 100), "what was copied may go"
    assert pool.take_freed_slots() == (first.slot,)


def test_what_is_not_copied_yet_is_not_offered_to_others() -> None:
    pool = make_pool(capacity_tokens=1000)
    take(pool, "a", LONG)
    pool.allocate("b", (*LONG[:48], 1, 2), 60)
    pool.free("b", is_kept=True)
    pool.check_integrity()
    assert pool.num_kept == 0, "it has nothing that was computed"


def test_the_slot_kept_longest_without_use_goes_first() -> None:
    pool = make_pool(capacity_tokens=170)
    slots = {}
    for name, ids in (("a", LONG), ("b", tuple(range(64)))):
        slots[name] = take(pool, name, ids).slot
        pool.free(name, is_kept=True)
    take(pool, "c", (*LONG[:32], 1))
    pool.allocate("d", (7,), 60)
    assert pool.take_freed_slots() == (slots["b"],)


def test_a_hash_that_says_alike_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuron_agent.scheduling.slots.next_key", lambda *_: 1)
    monkeypatch.setattr("neuron_agent.scheduling.prefix_index.next_key", lambda *_: 1)
    pool = make_pool()
    take(pool, "a", LONG[:16])
    place = pool.allocate("b", tuple(range(17)), 20)
    assert place is not None
    assert place.num_cached == 0


def test_a_source_that_was_disowned_goes_when_its_copy_is_done() -> None:
    pool = make_pool(capacity_tokens=1000)
    first = take(pool, "a", LONG)
    pool.allocate("b", (*LONG[:48], 1, 2), 60)
    pool.free("a", is_kept=False)
    assert pool.take_freed_slots() == ()
    pool.settle(pool.copies)
    pool.check_integrity()
    assert pool.take_freed_slots() == (first.slot,)


@pytest.mark.parametrize(
    "harm",
    [
        lambda pool: pool._held.clear(),
        lambda pool: pool._free_slots.pop(),
        lambda pool: pool._index.add(0, [1]),
        lambda pool: pool._in_use[0].ids.extend(range(999)),
        lambda pool: setattr(pool, "_held_tokens", 0),
        lambda pool: setattr(pool._in_use[0], "holder", "somebody"),
    ],
)
def test_integrity_sees_harm(harm: object) -> None:
    pool = make_pool()
    take(pool, "a", LONG)
    assert callable(harm)
    harm(pool)
    with pytest.raises(IntegrityError):
        pool.check_integrity()
