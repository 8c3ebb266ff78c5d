import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from neuron_agent.engine.sampling.drawing import (
    BLOCK_TOKENS,
    SLICE,
    Columns,
    DrawParameters,
    draw,
    draw_restricted,
    draw_wide,
    uniform,
)
from neuron_agent.engine.sampling.edits import InvalidSampling

NUM_DRAWS = 1 << 10
temperatures = st.sampled_from([0.05, 0.3, 1.0, 2.5])
distributions = st.integers(0, 2**31).map(lambda seed: make_logits(seed, size=30))
restrictions = st.builds(
    DrawParameters,
    temperature=temperatures,
    top_p=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def make_logits(seed: int, size: int) -> torch.Tensor:
    """Of a few values each, so that there are equals among them."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, size, generator=generator) * 6).round() / 3


def shares(logits: torch.Tensor, asked: DrawParameters) -> dict[int, float]:
    """Slowly and plainly: what each token's chance is, of those that may be drawn."""
    scaled = logits.double() / asked.temperature
    chances = torch.softmax(scaled, -1).tolist()
    order = sorted(range(len(chances)), key=lambda token: (-chances[token], token))
    order = order[: asked.top_k or None]
    total = math.fsum(chances[token] for token in order)
    kept, before = [], 0.0
    for token in order:
        # Where the sum meets the nucleus to the last digit, rounding decides: nothing to compare.
        assume(asked.top_p == 1 or abs(before - asked.top_p * total) > 1e-6)
        if before >= asked.top_p * total:
            break
        kept.append(token)
        before += chances[token]
    least = asked.min_p * chances[order[0]]
    assume(asked.min_p == 1 or all(abs(chances[token] - least) > 1e-6 * least for token in kept))
    kept = [token for token in kept if chances[token] >= least]
    total = math.fsum(chances[token] for token in kept)
    return {token: chances[token] / total for token in kept}


def evenly(asked: DrawParameters, num_draws: int = NUM_DRAWS) -> Columns:
    """Uniform numbers that fill the whole interval, a row each: what is drawn is the formula."""
    numbers = [
        (asked.temperature, asked.top_k, asked.top_p, asked.min_p, (i + 0.5) / num_draws)
        for i in range(num_draws)
    ]
    return Columns.of(numbers, torch.device("cpu"))


def assert_as_often(tokens: torch.Tensor, expected: dict[int, float]) -> None:
    counts = torch.bincount(tokens, minlength=30) / len(tokens)
    for token, count in enumerate(counts.tolist()):
        # Each token has one piece of the interval: an end of it falls between two rows.
        assert abs(count - expected.get(token, 0.0)) <= 1.01 / len(tokens) + 1e-6


@given(distributions, restrictions)
def test_tokens_are_drawn_as_often_as_the_formula_says(
    logits: torch.Tensor, asked: DrawParameters
) -> None:
    rows = logits.expand(NUM_DRAWS, -1).clone()
    tokens, is_complete = draw_restricted(rows, evenly(asked), SLICE)
    assert is_complete.all()
    assert_as_often(tokens, shares(logits[0], asked))


@settings(max_examples=60, deadline=None)
@given(distributions, restrictions)
def test_a_wide_draw_cuts_where_the_formula_says_without_sorting(
    logits: torch.Tensor, asked: DrawParameters
) -> None:
    expected = shares(logits[0], asked)
    assert_as_often(draw_wide(logits.repeat(16, 1), evenly(asked, 16)), expected)


@given(distributions, temperatures)
def test_without_a_restriction_every_token_has_its_chance(
    logits: torch.Tensor, temperature: float
) -> None:
    asked = DrawParameters(temperature, 1.0, 0, 0)
    rows = logits.expand(NUM_DRAWS, -1).clone()
    assert_as_often(draw(rows, evenly(asked)), shares(logits[0], asked))


@pytest.mark.parametrize("size", [1, BLOCK_TOKENS - 1, BLOCK_TOKENS, 3 * BLOCK_TOKENS + 5])
def test_vocabularies_need_not_be_whole_blocks(size: int) -> None:
    numbers = [(1.0, 0, 1.0, 0.0, (i + 0.5) / size) for i in range(size)]
    tokens = draw(torch.zeros(size, size), Columns.of(numbers, torch.device("cpu")))
    assert tokens.tolist() == list(range(size))


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.full((NUM_DRAWS, 300), -math.inf)
    logits[:, 2], logits[:, 277] = 0.0, 0.0
    asked = evenly(DrawParameters(1.0, 1.0, 0, 0))
    assert set(draw(logits.clone(), asked).tolist()) == {2, 277}
    assert set(draw_restricted(logits, asked, 10)[0].tolist()) == {2, 277}
    few = evenly(DrawParameters(1.0, 1.0, 0, 0), 4)
    assert set(draw_wide(logits[:4].clone(), few).tolist()) == {2, 277}


def test_a_wide_draw_takes_as_many_equals_as_asked_smallest_ids_first() -> None:
    asked = evenly(DrawParameters(1.0, 0.5, 60, 0), 30)
    tokens = draw_wide(torch.zeros(30, 1000), asked)
    assert tokens.tolist() == list(range(30))  # half of the first 60


@given(distributions, restrictions, st.integers(1, 29))
def test_a_slice_knows_whether_it_was_enough(
    logits: torch.Tensor, asked: DrawParameters, size: int
) -> None:
    columns = Columns.of([asked.at(7)], torch.device("cpu"))
    token, is_complete = draw_restricted(logits, columns, size)
    if is_complete.item():
        assert token.item() == draw_restricted(logits, columns, 30)[0].item()


def test_a_tiny_temperature_takes_the_best() -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(5))
    columns = Columns.of([(1e-30, 0, 1.0, 0.0, 0.7)], torch.device("cpu"))
    assert draw(logits.clone(), columns).item() == logits.argmax().item()


def test_seed_and_position_both_matter() -> None:
    numbers = {uniform(seed, position) for seed in range(30) for position in range(30)}
    assert len(numbers) == 900
    assert all(0 < number < 1 for number in numbers)
    assert uniform(-1, 5) == uniform(2**64 - 1, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": -0.1},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.1},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    asked = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0} | wrong
    with pytest.raises(InvalidSampling):
        DrawParameters(**asked)  # type: ignore[arg-type]
