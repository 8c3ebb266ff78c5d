"""Laws of any pool, whatever its layout: random owners that take, grow, compute and give back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.blocks import BlockPool
from neuron_agent.scheduling.pool import KvLayout, KvPool, build_pool
from neuron_agent.scheduling.slots import SlotPool

CAPACITY_TOKENS = 80
BLOCK_TOKENS = 4
BEGINNING = tuple(range(100, 124))

layouts = st.sampled_from(list(KvLayout))
moves = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from(("take", "grow", "compute", "settle", "keep", "forget", "drop")),
        st.integers(1, 40),
        st.integers(0, 24),
    ),
    max_size=50,
)


def make_pool(layout: KvLayout, capacity_tokens: int = CAPACITY_TOKENS) -> KvPool:
    return build_pool(
        layout, max_running=3, capacity_tokens=capacity_tokens, block_tokens=BLOCK_TOKENS
    )


class Owners:
    """Takes what a pool gives; `computed` counts each owner's tokens that are in the cache."""

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool
        self.computed: dict[str, int] = {}

    def move(self, name: str, kind: str, number: int, num_alike: int) -> None:
        if name not in self.computed:
            if kind == "take":
                self._take(name, (*BEGINNING[:num_alike], *range(number)), number + num_alike)
            return
        room = self.pool.held_tokens(name) - self.computed[name]
        if kind == "grow":
            held = self.pool.held_tokens(name)
            if self.pool.grow(name, held + number):
                assert self.pool.held_tokens(name) >= held + number
            else:
                assert self.pool.held_tokens(name) == held
        elif kind == "compute" and not self.pool.copies:
            ids = (*BEGINNING, *range(40))[self.computed[name] :][: min(number, room)]
            self.pool.record(name, ids)
            self.computed[name] += len(ids)
        elif kind == "settle":
            self.pool.settle(self.pool.copies)
        elif kind in ("keep", "forget"):
            self.pool.free(name, is_kept=kind == "keep")
            del self.computed[name]
        elif kind == "drop":
            self.pool.drop_prefixes()

    def _take(self, name: str, ids: tuple[int, ...], tokens: int) -> None:
        place = self.pool.allocate(name, ids, tokens)
        if place is not None:
            assert place.num_cached < len(ids), "something is left to be computed"
            assert self.pool.held_tokens(name) >= tokens
            self.computed[name] = place.num_cached


@given(layouts, moves)
def test_nothing_is_lost_or_given_out_twice(
    layout: KvLayout, moves: list[tuple[str, str, int, int]]
) -> None:
    pool = make_pool(layout)
    owners = Owners(pool)
    for move in moves:
        owners.move(*move)
        pool.check_integrity()
        assert pool.holders == owners.computed.keys()
        assert 0 <= pool.used_tokens <= pool.capacity_tokens


@given(layouts, moves)
def test_whatever_is_kept_never_keeps_anybody_out(
    layout: KvLayout, moves: list[tuple[str, str, int, int]]
) -> None:
    pool = make_pool(layout)
    owners = Owners(pool)
    for move in moves:
        owners.move(*move)
    for name in tuple(owners.computed):
        pool.free(name, is_kept=True)
    assert pool.used_tokens == 0
    place = pool.allocate("all", (*BEGINNING, *range(40)), pool.capacity_tokens)
    assert place is not None
    pool.check_integrity()
    assert pool.used_tokens == pool.capacity_tokens


@given(layouts, moves)
def test_a_slot_in_use_is_never_told_to_be_free(
    layout: KvLayout, moves: list[tuple[str, str, int, int]]
) -> None:
    pool = make_pool(layout)
    owners = Owners(pool)
    slots: dict[str, int] = {}
    allocate = pool.allocate

    def remembered(name: str, ids: tuple[int, ...], tokens: int) -> object:
        place = allocate(name, ids, tokens)
        if place is not None:
            slots[name] = place.slot
            pool.take_freed_slots()  # told before the newcomer computes anything
        return place

    pool.allocate = remembered  # type: ignore[method-assign, assignment]
    for move in moves:
        owners.move(*move)
        in_use = {slots[name] for name in owners.computed}
        assert len(in_use) == len(owners.computed), "one slot, one owner"
        assert not in_use & set(pool.take_freed_slots())


def test_every_layout_has_its_books() -> None:
    assert isinstance(make_pool(KvLayout.BLOCKS), BlockPool)
    assert isinstance(make_pool(KvLayout.SLOTS), SlotPool)
    private = make_pool(KvLayout.PRIVATE)
    assert isinstance(private, SlotPool)
    assert private.num_slots == 3, "nothing is kept"


@pytest.mark.parametrize("layout", list(KvLayout))
def test_a_pool_of_nothing_is_refused(layout: KvLayout) -> None:
    with pytest.raises(ValueError):
        make_pool(layout, capacity_tokens=0)
    with pytest.raises(ValueError):
        build_pool(layout, max_running=0, capacity_tokens=9, block_tokens=4)


@pytest.mark.parametrize("layout", list(KvLayout))
def test_no_more_sequences_run_than_may(layout: KvLayout) -> None:
    pool = make_pool(layout)
    places = [pool.allocate(name, (1,), 1) for name in "abcd"]
    assert [place is not None for place in places] == [True, True, True, False]
