import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.engine.sampling.edits import (
    EditParameters,
    InvalidSampling,
    LogitEdits,
    TokenMasks,
    apply_edits,
    apply_masks,
    forbid,
)

VOCABULARY_SIZE = 150
token_ids = st.integers(0, VOCABULARY_SIZE - 1)
texts = st.lists(token_ids, max_size=200)
parameters = st.builds(
    EditParameters,
    presence=st.sampled_from([0.0, -1.5, 2.0]),
    frequency=st.sampled_from([0.0, -0.5, 1.25]),
    repetition=st.sampled_from([1.0, 0.5, 1.5]),
    bias=st.dictionaries(token_ids, st.floats(-100, 100, width=32), max_size=5),
)
rows = st.lists(st.tuples(parameters, texts, texts), min_size=1, max_size=4)


def make_logits(num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num_rows, VOCABULARY_SIZE, generator=generator) * 3


def edited(
    logits: torch.Tensor, asked: EditParameters, prompt: list[int], text: list[int]
) -> list[float]:
    """Slowly and plainly, token by token from the whole text."""
    values = logits.tolist()
    counts = Counter(text)
    for token, value in enumerate(logits.tolist()):
        if token in counts or token in prompt:
            values[token] = value / asked.repetition if value > 0 else value * asked.repetition
        values[token] -= asked.frequency * counts[token] + asked.presence * (token in counts)
        values[token] += asked.bias.get(token, 0.0)
    return values


def edits_of(asked: EditParameters, prompt: list[int], text: list[int]) -> LogitEdits:
    edits = LogitEdits(asked, prompt)
    for token in text:
        edits.count(token)
    return edits


@given(rows)
def test_edits_that_grew_are_those_made_from_the_whole_text(
    asked: list[tuple[EditParameters, list[int], list[int]]],
) -> None:
    before = make_logits(len(asked))
    logits = before.clone()
    apply_edits(logits, [(row, edits_of(*one)) for row, one in enumerate(asked)])
    for row, one in enumerate(asked):
        expected = torch.tensor(edited(before[row], *one))
        torch.testing.assert_close(logits[row], expected, rtol=1e-5, atol=1e-5)


def test_only_the_rows_named_are_changed() -> None:
    before = make_logits(3)
    logits = before.clone()
    apply_edits(logits, [(1, edits_of(EditParameters(presence=1.0), [], [4]))])
    assert (logits != before).nonzero().tolist() == [[1, 4]]


def test_a_token_without_a_logit_changes_nothing() -> None:
    """An embedding may have more rows than the output head."""
    before = make_logits(2)
    logits = before.clone()
    asked = EditParameters(repetition=2.0, bias={VOCABULARY_SIZE + 3: 5.0})
    apply_edits(logits, [(0, edits_of(asked, [VOCABULARY_SIZE], [VOCABULARY_SIZE + 1]))])
    forbid(logits, [(0, [VOCABULARY_SIZE + 2])])
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("asked", "is_none"),
    [(EditParameters(), True), (EditParameters(bias={1: 0.5}), False)]
    + [(EditParameters(**{name: 0.5}), False) for name in ("presence", "frequency", "repetition")],
)
def test_who_asks_for_nothing_needs_no_edits(asked: EditParameters, is_none: bool) -> None:
    assert asked.is_none is is_none


def test_forbidden_tokens_are_impossible() -> None:
    logits = make_logits(2)
    forbid(logits, [(1, [3, 5])])
    assert (logits == -math.inf).nonzero().tolist() == [[1, 3], [1, 5]]


@given(st.sets(token_ids), st.sets(token_ids), st.booleans())
def test_a_mask_leaves_what_it_allows(first: set[int], second: set[int], is_whole: bool) -> None:
    before = make_logits(2 if is_whole else 3)
    allowed = {0: first, len(before) - 1: second}
    logits = before.clone()
    words = [
        [sum(1 << bit for bit in range(32) if word * 32 + bit in ids) for word in range(5)]
        for ids in allowed.values()
    ]
    bits = torch.tensor(words, dtype=torch.int64).to(torch.int32)
    apply_masks(logits, TokenMasks(list(allowed), bits))
    for row, values in enumerate(logits):
        ids = allowed.get(row, set(range(VOCABULARY_SIZE)))
        kept = (values != -math.inf).nonzero().flatten().tolist()
        assert kept == sorted(ids)
        assert torch.equal(values[kept], before[row][kept])


@pytest.mark.parametrize(
    "wrong",
    [
        {"presence": 2.1},
        {"presence": math.nan},
        {"frequency": -2.1},
        {"repetition": 0.0},
        {"repetition": -1.0},
        {"repetition": math.inf},
        {"bias": {1: 100.5}},
        {"bias": {1: math.nan}},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidSampling):
        EditParameters(**wrong)  # type: ignore[arg-type]
