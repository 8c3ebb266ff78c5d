from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from neuron_agent.engine.forwards.dense_plan import (
    BLOCK_TOKENS,
    BlockList,
    DensePlan,
    plan_blocks,
)

NUM_HEADS, NUM_SHARED = 4, 2


@st.composite
def lists_of_blocks(draw: st.DrawFn) -> list[BlockList]:
    """Sequences that share a number of blocks out among them in any order."""
    lengths = draw(st.lists(st.integers(1, 4 * BLOCK_TOKENS), min_size=1, max_size=4))
    counts = [-(-length // BLOCK_TOKENS) for length in lengths]
    numbers = iter(draw(st.permutations(range(sum(counts)))))
    return [
        BlockList([next(numbers) for _ in range(count)], length)
        for count, length in zip(counts, lengths, strict=True)
    ]


def plan(lists: list[BlockList], window: int | None = None, spare: int = 0) -> DensePlan:
    num_blocks = sum(len(one.blocks) for one in lists) + spare
    return plan_blocks(lists, num_blocks, NUM_HEADS, NUM_SHARED, window)


def rows_in_sight(planned: DensePlan, lists: list[BlockList]) -> Tensor:
    """[S, H, P * BLOCK_TOKENS]: per sequence and head, which (block, head, token) it is shown."""
    num_blocks = len(planned.owners)
    blocks = torch.arange(num_blocks) if planned.chosen is None else planned.chosen
    rows = blocks.view(-1, 1, 1) * NUM_HEADS + torch.arange(NUM_HEADS).view(-1, 1)
    rows = rows * BLOCK_TOKENS + torch.arange(BLOCK_TOKENS)  # [N, H, B]
    shown = rows.view(-1, BLOCK_TOKENS)[planned.to_sequences]
    return shown.view(len(lists), NUM_HEADS, -1)


@given(lists_of_blocks(), st.sampled_from([None, 1, 63, 64, 65, 130, 10**6]), st.integers(0, 3))
def test_each_head_sees_its_sequences_last_tokens_in_order_and_no_others(
    lists: list[BlockList], window: int | None, spare: int
) -> None:
    planned = plan(lists, window, spare)
    shown = rows_in_sight(planned, lists)
    for row, one in enumerate(lists):
        first = 0 if window is None else max(0, one.num_tokens - window)
        is_seen = planned.mask[row, 0] == 0
        for head in range(NUM_HEADS):
            expected = [
                (one.blocks[place // BLOCK_TOKENS] * NUM_HEADS + head) * BLOCK_TOKENS
                + place % BLOCK_TOKENS
                for place in range(first, one.num_tokens)
            ]
            assert shown[row, head][is_seen].tolist() == expected


@given(lists_of_blocks(), st.sampled_from([None, 1, 100]), st.integers(0, 3))
def test_what_is_masked_is_never_a_neighbours(
    lists: list[BlockList], window: int | None, spare: int
) -> None:
    shown = rows_in_sight(plan(lists, window, spare), lists) // (NUM_HEADS * BLOCK_TOKENS)
    for row, one in enumerate(lists):
        assert set(shown[row].flatten().tolist()) <= set(one.blocks)


@given(lists_of_blocks(), st.sampled_from([None, 1, 100]), st.integers(0, 3))
def test_the_way_back_leads_to_where_a_block_came_from(
    lists: list[BlockList], window: int | None, spare: int
) -> None:
    planned = plan(lists, window, spare)
    there = planned.to_sequences
    rows = torch.arange(len(planned.owners) * NUM_HEADS).view(-1, NUM_HEADS)
    in_sight = planned.parts.unique()
    assert torch.equal(there[planned.to_blocks].view(-1, NUM_HEADS)[in_sight], rows[in_sight])


@given(lists_of_blocks(), st.sampled_from([None, 1, 100]))
def test_the_parts_of_a_sequence_are_all_its_blocks_in_sight(
    lists: list[BlockList], window: int | None
) -> None:
    planned = plan(lists, window)
    bounds = [*planned.part_starts.tolist(), len(planned.parts)]
    for row, (start, end) in enumerate(pairwise(bounds)):
        parts = planned.parts[start:end]
        assert (planned.owners[parts] == row).all()
        if planned.chosen is None:
            assert parts.tolist() == lists[row].blocks
        else:
            left = len(lists[row].blocks) - len(parts)
            assert planned.chosen[parts].tolist() == lists[row].blocks[left:]


@given(lists_of_blocks())
def test_the_last_token_is_written_to_its_place(lists: list[BlockList]) -> None:
    written = plan(lists).written.view(len(lists), NUM_SHARED)
    for row, one in enumerate(lists):
        last = one.num_tokens - 1
        for head in range(NUM_SHARED):
            block = one.blocks[last // BLOCK_TOKENS]
            expected = (block * NUM_SHARED + head) * BLOCK_TOKENS + last % BLOCK_TOKENS
            assert written[row, head] == expected
