import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_agent.engine.sampling.drawing import SLICE, DrawParameters
from neuron_agent.engine.sampling.edits import EditParameters, LogitEdits, TokenMasks
from neuron_agent.engine.sampling.sampler import WIDE_ROWS, Choice, Draw, RowFailure, sample

VOCABULARY_SIZE = 40
ids = st.integers(0, VOCABULARY_SIZE - 1)

parameters = st.builds(
    DrawParameters,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    min_p=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**64 - 1),
)
edits = st.builds(
    LogitEdits,
    st.builds(
        EditParameters,
        presence=st.sampled_from([0.0, 1.0]),
        repetition=st.sampled_from([1.0, 1.3]),
        bias=st.dictionaries(ids, st.floats(-5, 5), max_size=3),
    ),
    st.lists(ids, max_size=20),
)
draws = st.builds(
    Draw,
    parameters=parameters,
    position=st.integers(0, 10_000),
    edits=st.none() | edits,
    forbidden_ids=st.sampled_from([(), (1, 2, 3)]),
    num_logprobs=st.sampled_from([None, 0, 2, 5]),
)
ALL = [-1] * ((VOCABULARY_SIZE + 31) // 32)


def make_logits(rows: int, size: int = VOCABULARY_SIZE, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, size, generator=generator) * spread


def draw_of(seed: int, temperature: float = 1.0, top_p: float = 1.0, **more: object) -> Draw:
    asked = DrawParameters(temperature, top_p, 0, seed)
    return Draw(asked, position=3, **more)  # type: ignore[arg-type]


def tokens(choices: list[Choice | RowFailure]) -> list[int | None]:
    return [choice.token_id if isinstance(choice, Choice) else None for choice in choices]


def choice(found: Choice | RowFailure) -> Choice:
    assert isinstance(found, Choice)
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(draws, st.booleans()), min_size=1, max_size=6))
def test_a_row_is_the_same_alone_and_in_a_crowd(crowd: list[tuple[Draw, bool]]) -> None:
    """Whatever it asks for, and whatever the others ask for."""
    logits = make_logits(len(crowd))
    masked = [row for row, (_, is_masked) in enumerate(crowd) if is_masked]
    mask = torch.tensor([[0x0F0F0F0F, 0x3C]], dtype=torch.int32)
    masks = TokenMasks(masked, mask.expand(len(masked), -1).contiguous()) if masked else None
    together = sample(logits.clone(), [one for one, _ in crowd], masks)
    for row, (one, is_masked) in enumerate(crowd):
        alone = TokenMasks([0], mask) if is_masked else None
        assert together[row] == sample(logits[row : row + 1].clone(), [one], alone)[0]


def test_greedy_rows_take_the_best_token() -> None:
    logits = make_logits(3)
    crowd = [
        draw_of(1, temperature=0.0),
        draw_of(2, top_p=0.0),
        Draw(DrawParameters(1.0, 1.0, 1, 0), 3),
    ]
    assert tokens(sample(logits.clone(), crowd)) == logits.argmax(-1).tolist()


def test_a_nucleus_wider_than_the_slice_is_not_cut() -> None:
    size = 40 * SLICE
    logits = torch.arange(size, 0, -1).unsqueeze(0) * 1e-5  # the first token is the likeliest
    crowd = [draw_of(seed, top_p=0.9) for seed in range(40)]
    drawn = [choice(one).token_id for one in sample(logits.repeat(40, 1), crowd)]
    assert min(drawn) < size / 10
    assert 0.7 * size < max(drawn) < 0.91 * size


def test_a_wide_nucleus_is_the_same_alone_and_in_a_crowd() -> None:
    logits = make_logits(WIDE_ROWS + 3, size=4 * SLICE, spread=0.2)
    crowd = [draw_of(seed, top_p=0.95, num_logprobs=2) for seed in range(len(logits))]
    together = sample(logits.clone(), crowd)
    for row, one in enumerate(crowd):
        assert together[row] == sample(logits[row : row + 1].clone(), [one])[0]


def test_a_broken_row_fails_and_leaves_its_neighbours_alone() -> None:
    logits = make_logits(4)
    crowd = [draw_of(1), draw_of(2), draw_of(3, temperature=0.0), draw_of(4, top_p=0.5)]
    sound = sample(logits.clone(), crowd)
    for broken, value in ((0, math.nan), (2, math.inf), (3, math.nan)):
        damaged = logits.clone()
        damaged[broken, 3] = value
        expected = [RowFailure.NOT_FINITE if row == broken else sound[row] for row in range(4)]
        assert sample(damaged, crowd) == expected


def test_a_row_with_nothing_left_fails_alone() -> None:
    logits = make_logits(3)
    crowd = [draw_of(1), draw_of(2), draw_of(3, forbidden_ids=range(VOCABULARY_SIZE))]
    masks = TokenMasks([0], torch.zeros(1, len(ALL), dtype=torch.int32))
    together = sample(logits.clone(), crowd, masks)
    assert together[0] == together[2] == RowFailure.NO_TOKEN
    assert together[1] == sample(logits[1:2].clone(), crowd[1:2])[0]


def test_a_masked_row_that_is_broken_is_called_broken() -> None:
    logits = torch.full((1, VOCABULARY_SIZE), math.nan)
    masks = TokenMasks([0], torch.tensor([ALL], dtype=torch.int32))
    assert sample(logits, [draw_of(1)], masks) == [RowFailure.NOT_FINITE]


def test_only_what_a_mask_allows_is_chosen() -> None:
    masks = TokenMasks([0], torch.tensor([[1 << 7, 0]], dtype=torch.int32))
    for one in (draw_of(1), draw_of(1, temperature=0.0), draw_of(1, top_p=0.9)):
        assert tokens(sample(make_logits(1), [one], masks)) == [7]


def test_edits_decide_with() -> None:
    logits = make_logits(1)
    best = int(logits.argmax())
    edits = LogitEdits(EditParameters(bias={best: -100.0}), [])
    assert tokens(sample(logits.clone(), [draw_of(1, 0.0, edits=edits)])) != [best]


@settings(deadline=None)
@given(draws, st.integers(0, 5))
def test_logprobs_are_the_model_s_own_whatever_is_asked_of_the_draw(
    one: Draw, num_logprobs: int
) -> None:
    """Of the distribution before temperature, penalties and masks."""
    logits = make_logits(1)
    own = torch.log_softmax(logits[0].double(), -1)
    asked = Draw(one.parameters, one.position, one.edits, one.forbidden_ids, num_logprobs)
    found = choice(sample(logits.clone(), [asked])[0])
    assert found.logprob is not None
    assert found.logprob.logprob == pytest.approx(float(own[found.token_id]), abs=1e-5)
    expected, order = own.topk(num_logprobs)
    assert [token for token, _ in found.logprob.top] == order.tolist()
    assert [value for _, value in found.logprob.top] == pytest.approx(expected.tolist(), abs=1e-5)


def test_all_logprobs_together_are_a_distribution() -> None:
    found = choice(sample(make_logits(1), [draw_of(1, num_logprobs=VOCABULARY_SIZE)])[0])
    assert found.logprob is not None
    assert math.fsum(math.exp(value) for _, value in found.logprob.top) == pytest.approx(1.0)


def test_a_row_drawn_again_has_the_logprob_of_its_last_token() -> None:
    logits = torch.arange(2000, 0, -1).unsqueeze(0) * 1e-3
    for seed in range(20):
        one = draw_of(seed, top_p=0.95, num_logprobs=0, temperature=2.0)
        found = choice(sample(logits.clone(), [one])[0])
        own = torch.log_softmax(logits[0], -1)[found.token_id]
        assert found.logprob is not None
        assert found.logprob.logprob == pytest.approx(float(own), abs=1e-4)
