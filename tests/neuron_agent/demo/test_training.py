"""The parts of the demo model's training that hold for any input."""

from itertools import islice
from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.demo.training import (
    Example,
    _endless_batches,
    _of_about_one_length,
    _tensors,
    orthogonalise,
)

ids = st.lists(st.integers(1, 99), min_size=1, max_size=40).map(tuple)
examples = st.lists(st.builds(Example, ids, ids), min_size=1, max_size=12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 8, 8), (1, 6, 20), (3, 20, 6)]))
def test_orthogonalised_matrices_have_singular_values_near_one(seed: int, shape: tuple[int, ...]):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values = torch.linalg.svdvals(orthogonalise(matrices, num_iterations=9))
    assert values.max() < 1.3
    assert values.median() > 0.6


@given(examples)
def test_groups_keep_every_example_and_need_little_padding(batch: list[Example]):
    groups = _of_about_one_length(batch)
    assert sorted(map(len, batch)) == [len(example) for group in groups for example in group]
    assert all(len(group[-1]) <= 1.4 * len(group[0]) for group in groups)


@given(examples)
def test_only_the_replies_are_learned_each_from_the_token_before(batch: list[Example]):
    inputs, labels = _tensors(batch)
    for row, example in enumerate(batch):
        learned = (labels[row] >= 0).nonzero()[:, 0]
        assert tuple(labels[row, learned].tolist()) == example.reply_ids
        assert inputs[row, : len(example)].tolist() == [*example.prompt_ids, *example.reply_ids]
        assert learned[0] == len(example.prompt_ids) - 1


@given(examples, st.integers(0, 99))
def test_batches_show_every_example_and_are_the_same_for_one_seed(epoch: list[Example], seed: int):
    def some_batches() -> list[list[Example]]:
        batches = _endless_batches(lambda dice: iter(epoch), Random(seed), batch_tokens=100)
        return list(islice(batches, 100))

    batches = some_batches()
    assert batches == some_batches()
    assert {example for batch in batches for example in batch} == set(epoch)
    assert all(sum(map(len, batch)) >= 100 for batch in batches)
