from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.prefix_index import (
    PIECE_TOKENS,
    PrefixIndex,
    next_key,
    num_common,
    pieces_of,
)

ids_lists = st.builds(
    lambda number, rest: [*range(PIECE_TOKENS * number), *rest],
    st.integers(0, 3),
    st.lists(st.integers(0, 2), max_size=2 * PIECE_TOKENS),
)


def keys_of(ids: list[int]) -> list[int]:
    key = 0
    return [key := next_key(key, piece) for piece in pieces_of(ids, 0)]


@given(st.lists(ids_lists, max_size=6), ids_lists)
def test_the_deepest_candidates_share_most_whole_pieces(
    held: list[list[int]], wanted: list[int]
) -> None:
    index = PrefixIndex()
    for slot, ids in enumerate(held):
        index.add(slot, keys_of(ids))
    shared = [num_common(wanted, ids, 0) // PIECE_TOKENS * PIECE_TOKENS for ids in held]
    depth, slots = index.deepest(wanted)
    assert depth == max(shared, default=0)
    assert set(slots) == {slot for slot, num in enumerate(shared) if depth and num == depth}


@given(st.lists(ids_lists, max_size=6))
def test_what_is_removed_leaves_nothing(held: list[list[int]]) -> None:
    index = PrefixIndex()
    for slot, ids in enumerate(held):
        index.add(slot, keys_of(ids))
    for slot, ids in enumerate(held):
        index.remove(slot, keys_of(ids))
    assert index.entries == set()
    assert index._slots_by_key == {}


def test_a_key_stands_for_everything_before_it() -> None:
    piece = tuple(range(PIECE_TOKENS))
    other = (9, *piece[1:])
    assert next_key(next_key(0, piece), piece) != next_key(next_key(0, other), piece)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_tokens_are_counted_up_to_the_first_that_differs(
    left: list[int], right: list[int]
) -> None:
    num = num_common(left, right, 0)
    assert left[:num] == right[:num]
    assert num == min(len(left), len(right)) or left[num] != right[num]
