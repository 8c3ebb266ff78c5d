import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.engine.sampler import (
    SLICE_TOKENS,
    Draw,
    InvalidSampling,
    SamplingParameters,
    sample,
    uniform,
)

VOCABULARY_SIZE = 40

parameters = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    seed=st.integers(0, 2**64 - 1),
)
draws = st.builds(Draw, parameters=parameters, position=st.integers(0, 10_000))


def make_logits(rows: int, size: int = VOCABULARY_SIZE, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, size, generator=generator) * spread


def draw_of(seed: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Draw:
    return Draw(SamplingParameters(temperature, top_p, top_k, seed), position=3)


def allowed_tokens(logits: torch.Tensor, draw: Draw) -> set[int]:
    """Slowly and plainly: sort, keep top_k, then the fewest tokens that make up top_p of that."""
    asked = draw.parameters
    probabilities = torch.softmax(logits.double() / asked.temperature, -1)
    order = sorted(range(len(probabilities)), key=lambda token: -float(probabilities[token]))
    order = order[: asked.top_k or None]
    total = math.fsum(float(probabilities[token]) for token in order)
    kept, before = set(), 0.0
    for token in order:
        if before >= asked.top_p * total:
            break
        kept.add(token)
        before += float(probabilities[token])
    return kept


@given(st.lists(draws, min_size=1, max_size=6))
def test_a_row_is_the_same_alone_and_in_a_crowd(crowd: list[Draw]) -> None:
    logits = make_logits(len(crowd))
    together = sample(logits, crowd)
    assert together == [sample(logits[i : i + 1], [draw])[0] for i, draw in enumerate(crowd)]


@given(draws)
def test_only_allowed_tokens_are_drawn(draw: Draw) -> None:
    logits = make_logits(1)
    token = sample(logits, [draw])[0]
    if draw.parameters.is_greedy:
        assert token == int(logits[0].argmax())
    else:
        assert token in allowed_tokens(logits[0], draw)


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 5), (0.8, 5)])
def test_tokens_come_as_often_as_their_probabilities_say(top_p: float, top_k: int) -> None:
    num_draws = 4000
    logits = make_logits(1, size=12, spread=1.0)
    crowd = [draw_of(seed, top_p=top_p, top_k=top_k) for seed in range(num_draws)]
    tokens = sample(logits.expand(num_draws, -1), crowd)
    kept = allowed_tokens(logits[0], crowd[0])
    weights = {token: math.exp(float(logits[0, token])) for token in kept}
    for token, weight in weights.items():
        share = weight / sum(weights.values())
        spread = math.sqrt(share * (1 - share) / num_draws)
        assert abs(tokens.count(token) / num_draws - share) < 5 * spread
    assert set(tokens) <= kept


def test_a_nucleus_wider_than_the_slice_is_not_cut() -> None:
    size = 4 * SLICE_TOKENS
    logits = torch.arange(size, 0, -1).unsqueeze(0) * 1e-5  # the first token is the likeliest
    tokens = [sample(logits, [draw_of(seed, top_p=0.9)])[0] for seed in range(40)]
    drawn = [token for token in tokens if token is not None]
    assert len(drawn) == 40
    assert min(drawn) < SLICE_TOKENS
    assert 3 * SLICE_TOKENS < max(drawn) < 0.91 * size


def test_a_broken_row_gives_none_and_leaves_its_neighbours_alone() -> None:
    logits = make_logits(4)
    crowd = [draw_of(1), draw_of(2), draw_of(3, temperature=0.0), draw_of(4, top_p=0.5)]
    sound = sample(logits, crowd)
    for broken, value in ((0, math.nan), (2, math.inf), (3, math.nan)):
        damaged = logits.clone()
        damaged[broken, 3] = value
        expected = [None if row == broken else token for row, token in enumerate(sound)]
        assert sample(damaged, crowd) == expected


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.full((1, 5), -math.inf)
    logits[0, 2] = 0.0
    for seed in range(20):
        assert sample(logits, [draw_of(seed)]) == [2]
        assert sample(logits, [draw_of(seed, top_p=0.9)]) == [2]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = make_logits(1)
    assert sample(logits, [draw_of(1, temperature=1e-30)]) == [int(logits.argmax())]


def test_top_p_of_nothing_leaves_the_best_token() -> None:
    logits = make_logits(1)
    tokens = {sample(logits, [draw_of(seed, top_p=0.0)])[0] for seed in range(20)}
    assert tokens == {int(logits.argmax())}


def test_seed_and_position_both_matter() -> None:
    numbers = {uniform(seed, position) for seed in range(30) for position in range(30)}
    assert len(numbers) == 900
    assert all(0 < number < 1 for number in numbers)
    assert uniform(-1, 5) == uniform(2**64 - 1, 5)


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(-0.1, 1, 0), (math.nan, 1, 0), (math.inf, 1, 0), (1, -0.1, 0), (1, 1.1, 0), (1, 1, -1)],
)
def test_nonsense_is_refused(temperature: float, top_p: float, top_k: int) -> None:
    with pytest.raises(InvalidSampling):
        SamplingParameters(temperature, top_p, top_k, seed=0)
