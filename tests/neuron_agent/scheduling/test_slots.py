import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.slots import IntegrityError, SlotPool


def test_a_pool_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        SlotPool(num_slots=0, capacity_tokens=10)
    with pytest.raises(ValueError):
        SlotPool(num_slots=1, capacity_tokens=0)


def test_nothing_is_given_beyond_slots_or_tokens() -> None:
    pool = SlotPool(num_slots=2, capacity_tokens=10)
    assert pool.allocate("a", 6) is not None
    assert pool.allocate("b", 5) is None
    assert pool.allocate("b", 4) is not None
    pool.free("a")
    assert pool.allocate("c", 1) is not None
    assert pool.allocate("d", 1) is None, "both slots are held"


def test_growing_takes_what_is_free_or_changes_nothing() -> None:
    pool = SlotPool(num_slots=2, capacity_tokens=10)
    pool.allocate("a", 4)
    pool.allocate("b", 3)
    assert pool.grow("a", 7)
    assert not pool.grow("b", 4)
    assert pool.held_tokens("b") == 3
    assert pool.grow("b", 2)
    assert pool.held_tokens("b") == 3, "a reservation never shrinks"


def test_a_request_cannot_hold_two_slots() -> None:
    pool = SlotPool(num_slots=2, capacity_tokens=10)
    pool.allocate("a", 1)
    with pytest.raises(IntegrityError):
        pool.allocate("a", 1)


def test_integrity_sees_a_leaked_slot() -> None:
    pool = SlotPool(num_slots=2, capacity_tokens=10)
    pool.allocate("a", 1)
    pool._held.clear()
    with pytest.raises(IntegrityError):
        pool.check_integrity()


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 12)), max_size=60))
def test_whatever_is_taken_comes_back(moves: list[tuple[str, int]]) -> None:
    pool = SlotPool(num_slots=3, capacity_tokens=20)
    for name, tokens in moves:
        if name in pool.holders:
            pool.free(name) if tokens % 2 else pool.grow(name, tokens)
        else:
            pool.allocate(name, tokens)
        pool.check_integrity()
        assert 0 <= pool.reserved_tokens <= 20
    for name in pool.holders:
        pool.free(name)
    pool.check_integrity()
    assert pool.free_tokens == 20
