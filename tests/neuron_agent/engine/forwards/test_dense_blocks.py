"""Sequences come and go among the blocks, and each attends as if it were alone."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuron_agent.engine.forwards import dense_blocks
from neuron_agent.engine.forwards.dense_blocks import LEAST_BLOCKS, DenseBlocks
from neuron_agent.engine.forwards.dense_plan import BLOCK_TOKENS

NUM_SHARED, NUM_GROUPS, HEAD_SIZE, VALUE_SIZE = 2, 3, 16, 8
SCALE = 0.3


@pytest.fixture(scope="module", autouse=True)
def _as_in_a_step() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Story:
    """Random keys and values of one sequence, and what a query at its end must give."""

    def __init__(self, seed: int, length: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.keys = self._random(NUM_SHARED, length, HEAD_SIZE)
        self.values = self._random(NUM_SHARED, length, VALUE_SIZE)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    @property
    def length(self) -> int:
        return self.keys.shape[1]

    @property
    def layers(self) -> dict[int, tuple[Tensor, Tensor]]:
        return {0: (self.keys, self.values)}

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Grow by a token: its query [H, D], key [Hkv, D], value [Hkv, Dv]."""
        query = self._random(NUM_SHARED * NUM_GROUPS, HEAD_SIZE)
        key, value = self._random(NUM_SHARED, HEAD_SIZE), self._random(NUM_SHARED, VALUE_SIZE)
        self.keys = torch.cat((self.keys, key.unsqueeze(1)), 1)
        self.values = torch.cat((self.values, value.unsqueeze(1)), 1)
        return query, key, value

    def attended(self, query: Tensor, window: int | None) -> Tensor:
        first = 0 if window is None else max(0, self.length - window)
        keys, values = self.keys[:, first:], self.values[:, first:]
        grouped = query.view(NUM_SHARED, NUM_GROUPS, HEAD_SIZE)
        out = F.scaled_dot_product_attention(grouped, keys, values, scale=SCALE)
        return out.flatten(0, 1)


def step(dense: DenseBlocks, stories: dict[int, Story], window: int | None = None) -> Tensor:
    """Let each take its next token; check what comes out, and return it."""
    tokens = [story.next() for story in stories.values()]
    for slot, story in stories.items():
        dense.extend(slot, story.length)
    dense.begin(list(stories))
    query, key, value = (torch.stack(parts) for parts in zip(*tokens, strict=True))
    out = dense.attend(0, query, key, value, SCALE, window)
    for row, (story, token) in enumerate(zip(stories.values(), tokens, strict=True)):
        expected = story.attended(token[0], window)
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=1e-5)
    return out


@given(
    acts=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 150)), min_size=1, max_size=12),
    window=st.sampled_from([None, 1, 50, 64, 100, 1000]),
)
@settings(deadline=None, max_examples=25)
def test_whoever_comes_and_goes_each_attends_to_its_own(
    acts: list[tuple[int, int]], window: int | None
) -> None:
    """An act: the slot leaves if it is in, else it comes with so many tokens."""
    dense, stories = DenseBlocks(), dict[int, Story]()
    for number, (slot, length) in enumerate(acts):
        if slot in stories:
            keys, values = dense.read(slot)[0]
            assert torch.equal(keys, stories[slot].keys)
            assert torch.equal(values, stories[slot].values)
            dense.drop(slot)
            del stories[slot]
        else:
            stories[slot] = Story(number, length)
            dense.put(slot, stories[slot].layers, length)
        if stories:
            step(dense, stories, window)
    assert set(dense.slots) == set(stories)


def test_a_beginning_can_be_read_while_the_sequence_goes_on() -> None:
    story = Story(1, 100)
    dense = DenseBlocks()
    dense.put(3, story.layers, 100)
    keys, values = dense.read(3, 70)[0]
    step(dense, {3: story})
    assert torch.equal(keys, story.keys[:, :70])
    assert torch.equal(values, story.values[:, :70])


def test_a_sequence_that_is_no_numbers_spoils_no_other() -> None:
    broken, sound = Story(1, 70), Story(2, 10)
    broken.keys[:], broken.values[:] = float("nan"), float("inf")
    dense = DenseBlocks()
    for slot, story in enumerate((broken, sound)):
        dense.put(slot, story.layers, story.length)
    tokens = [story.next() for story in (broken, sound)]
    dense.extend(0, 71)
    dense.extend(1, 11)
    dense.begin([0, 1])
    query, key, value = (torch.stack(parts) for parts in zip(*tokens, strict=True))
    out = dense.attend(0, query, key, value, SCALE, None)
    assert torch.isnan(out[0]).all()
    torch.testing.assert_close(out[1], sound.attended(tokens[1][0], None), atol=1e-5, rtol=1e-5)


def test_blocks_of_one_that_was_no_numbers_are_as_good_as_new() -> None:
    broken, sound = Story(1, 70), Story(2, BLOCK_TOKENS)
    broken.keys[:], broken.values[:] = float("nan"), float("nan")
    dense = DenseBlocks()
    dense.put(0, broken.layers, broken.length)
    dense.put(1, sound.layers, sound.length)
    dense.drop(0)
    step(dense, {1: sound})


def test_memory_follows_use_and_goes_with_the_last() -> None:
    dense = DenseBlocks()
    block_bytes = NUM_SHARED * BLOCK_TOKENS * (HEAD_SIZE + VALUE_SIZE) * 4
    stories = {slot: Story(slot, 20 * BLOCK_TOKENS) for slot in range(4)}
    for slot, story in stories.items():
        dense.put(slot, story.layers, story.length)
    assert 80 * block_bytes <= dense.allocated_bytes <= 120 * block_bytes
    for slot in (0, 1, 2):
        dense.drop(slot)
        del stories[slot]
    step(dense, stories)
    assert dense.allocated_bytes <= 2 * 21 * block_bytes
    dense.drop(3)
    assert dense.allocated_bytes == 0
    dense.put(5, Story(1, 1).layers, 1)
    assert dense.allocated_bytes == LEAST_BLOCKS * block_bytes


@pytest.mark.parametrize("num_layers_before", [0, 1])
def test_memory_that_ran_out_loses_nobody(
    monkeypatch: pytest.MonkeyPatch, num_layers_before: int
) -> None:
    stories = {slot: Story(slot, 100) for slot in range(2)}
    dense = DenseBlocks()
    dense.put(0, dict.fromkeys(range(2), stories[0].layers[0]), 100)
    original, num_calls = dense_blocks._resized, 0

    def failing(kept: Tensor, capacity: int, num_used: int) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 2 * num_layers_before:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return original(kept, capacity, num_used)

    with monkeypatch.context() as patched:
        patched.setattr(dense_blocks, "_resized", failing)
        with pytest.raises(RuntimeError, match="memory"):
            dense.put(1, Story(9, 5000).layers, 5000)
    assert dense.slots == (0,)
    dense.put(1, dict.fromkeys(range(2), stories[1].layers[0]), 100)
    step(dense, stories)


def test_a_sequence_can_leave_between_two_steps() -> None:
    stories = {slot: Story(slot, 10) for slot in range(3)}
    dense = DenseBlocks()
    for slot, story in stories.items():
        dense.put(slot, story.layers, story.length)
    with torch.inference_mode(mode=False):
        dense.drop(0)
    del stories[0]
    step(dense, stories)


def test_dropping_one_that_is_not_there_does_nothing() -> None:
    dense = DenseBlocks()
    dense.drop(7)
    assert dense.slots == ()
