from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.scheduling.block_tree import ROOT, BlockTree

SIZE = 4
sequences = st.lists(st.lists(st.integers(0, 1), max_size=14).map(tuple), max_size=8)
asked = st.lists(st.integers(0, 1), max_size=14).map(tuple)


class Shelf:
    """A tree with the contents of its blocks beside it, written down when they are named."""

    def __init__(self) -> None:
        self.tree = BlockTree(SIZE)
        self.contents: dict[int, tuple[int, ...]] = {}  # block -> everything up to its end

    def put(self, ids: tuple[int, ...]) -> None:
        name = ROOT
        for start in range(0, len(ids), SIZE):
            block_id = len(self.contents)
            self.contents[block_id] = ids[: start + SIZE]
            name = self.tree.add(block_id, name, ids[start : start + SIZE])


@given(sequences, asked)
def test_what_is_found_holds_exactly_what_was_asked_for_and_all_of_it(
    held: list[tuple[int, ...]], ids: tuple[int, ...]
) -> None:
    shelf = Shelf()
    for each in held:
        shelf.put(each)
    match = shelf.tree.find(ids)
    for number, block_id in enumerate(match.block_ids):
        assert shelf.contents[block_id] == ids[: (number + 1) * SIZE]
    start = len(match.block_ids) * SIZE
    end = start + match.num_partial
    if match.partial_block is not None:
        assert shelf.contents[match.partial_block][:end] == ids[:end]
        assert len(shelf.contents[match.partial_block]) > start
    shared = [
        n for each in held for n in range(len(ids) + 1) if each[:n] == ids[:n] and len(each) >= n
    ]
    assert end == max(shared, default=0)
    assert shelf.tree.is_consistent


@given(sequences, asked, st.data())
def test_what_is_removed_is_found_no_more_and_nothing_wrong_instead(
    held: list[tuple[int, ...]], ids: tuple[int, ...], data: st.DataObject
) -> None:
    shelf = Shelf()
    for each in held:
        shelf.put(each)
    gone = data.draw(st.sets(st.sampled_from(sorted(shelf.contents)))) if shelf.contents else set()
    for block_id in gone:
        shelf.tree.remove(block_id)
    for each in held:  # blocks named after a removed one must not turn up under its successor
        shelf.put(each)
    match = shelf.tree.find(ids)
    found = (*match.block_ids, *(() if match.partial_block is None else (match.partial_block,)))
    assert not gone & set(found)
    for number, block_id in enumerate(match.block_ids):
        assert shelf.contents[block_id] == ids[: (number + 1) * SIZE]
    assert shelf.tree.is_consistent


def test_equal_contents_have_one_name_and_one_block() -> None:
    tree = BlockTree(SIZE)
    name = tree.add(1, ROOT, (1, 2, 3, 4))
    assert tree.add(2, ROOT, (1, 2, 3, 4)) == name
    assert (1 in tree, 2 in tree) == (True, False)
    assert tree.find((1, 2, 3, 4)).name == name


def test_the_same_block_gets_another_name_when_it_comes_again() -> None:
    tree = BlockTree(SIZE)
    first = tree.add(1, ROOT, (1, 2, 3, 4))
    tree.add(2, first, (5, 6, 7, 8))
    tree.remove(1)
    assert tree.add(1, ROOT, (9, 9, 9, 9)) != first
    assert tree.find((9, 9, 9, 9, 5, 6, 7, 8)).block_ids == (1,)


def test_a_few_tokens_are_not_worth_a_copy() -> None:
    tree = BlockTree(64)
    tree.add(1, ROOT, tuple(range(64)))
    assert tree.find((*range(7), 99)).partial_block is None
    assert tree.find((*range(8), 99)).num_partial == 8
