"""Attention by compiled kernels gives what the formula says, for every kind of head they take."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.cpu import attention
from neuron_agent.engine.cpu.attention import StepAttention, can_attend
from tests.neuron_agent.engine.cpu.conditions import needs_kernels, portable_kernels

pytestmark = needs_kernels

BFLOAT16 = torch.bfloat16


@pytest.fixture(params=["1 thread", "2 threads", "portable"], autouse=True)
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With the machine's own kernels, and with what other machines would get."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if request.param == "2 threads" else 1)
    if request.param == "portable":
        kernels = portable_kernels()
        monkeypatch.setattr(attention, "native", lambda: kernels)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Shape:
    num_heads: int
    num_shared: int
    key_size: int
    value_size: int


class Story:
    """A sequence with `start` tokens kept and `num_rows` more of this step."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, start: int, num_rows: int, seed: int = 1
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        end = start + num_rows
        self.start, self.num_rows = start, num_rows
        self.query = self._random(num_rows, shape.num_heads, shape.key_size).to(dtype)
        self.keys = self._random(shape.num_shared, end, shape.key_size).to(dtype)
        self.values = self._random(shape.num_shared, end, shape.value_size).to(dtype)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator)

    @property
    def new(self) -> tuple[Tensor, Tensor]:
        """The step's keys [n, Hkv, D] and values."""
        parts = (self.keys[:, self.start :], self.values[:, self.start :])
        keys, values = (part.transpose(0, 1) for part in parts)
        return keys, values

    def slot(self, capacity: int) -> tuple[Tensor, Tensor]:
        """Room with what came before; the rest is no number, so that nothing of it is read."""
        pair = []
        for whole in (self.keys, self.values):
            room = whole.new_full((whole.shape[0], capacity, whole.shape[2]), float("nan"))
            room[:, : self.start] = whole[:, : self.start]
            pair.append(room)
        return pair[0], pair[1]

    def attended(self, scale: float, window: int | None) -> Tensor:
        """[n, H, Dv] by the formula, in float64."""
        groups = self.query.shape[1] // self.keys.shape[0]
        keys, values = (
            whole.double().repeat_interleave(groups, 0) for whole in (self.keys, self.values)
        )
        scores = torch.einsum("nhd,hkd->hnk", self.query.double(), keys) * scale
        rows = self.start + torch.arange(self.num_rows).unsqueeze(1)
        distance = rows - torch.arange(keys.shape[1])
        hidden = distance < 0
        if window is not None:
            hidden |= distance >= window
        shares = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hnk,hkd->nhd", shares, values)


def attend(
    stories: list[Story], scale: float, window: int | None = None, extra: int = 3
) -> list[Tensor | None]:
    """Attend for all at once; None where the kernels leave a piece to others."""
    pieces, row = [], 0
    kept = [story.slot(story.start + story.num_rows + extra) for story in stories]
    for story in stories:
        pieces.append((row, story.num_rows, story.start))
        row += story.num_rows
    query = torch.cat([story.query for story in stories])
    key, value = (torch.cat(parts) for parts in zip(*(s.new for s in stories), strict=True))
    assert can_attend(query, key, value)
    out, num_done = StepAttention(pieces).attend(kept, query, key, value, scale, window)
    for story, (keys, values) in zip(stories, kept, strict=True):
        end = story.start + story.num_rows
        assert torch.equal(keys[:, story.start : end], story.keys[:, story.start :])
        assert torch.equal(values[:, story.start : end], story.values[:, story.start :])
        assert keys[:, end:].isnan().all()
    outs = list(out.split([story.num_rows for story in stories]))
    return [one if number < num_done else None for number, one in enumerate(outs)]


def assert_near(ours: Tensor | None, expected: Tensor) -> None:
    if ours is None:
        pytest.skip("prompts are left to torch on this machine, or with this library")
    error = 1e-5 if ours.dtype == torch.float32 else 0.01
    torch.testing.assert_close(ours.double(), expected, atol=error, rtol=error)


SHAPES = [
    Shape(4, 2, 64, 64),
    Shape(8, 8, 16, 16),
    Shape(7, 1, 128, 64),
    Shape(6, 2, 32, 48),
    Shape(16, 2, 256, 256),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("window", [None, 1, 16, 1000])
def test_single_rows_attend_to_all_that_is_kept(
    shape: Shape, dtype: torch.dtype, window: int | None
) -> None:
    stories = [Story(shape, dtype, start, 1, seed=start) for start in (0, 1, 63, 64, 200)]
    for out, story in zip(attend(stories, 0.2, window), stories, strict=True):
        assert out is not None
        assert_near(out, story.attended(0.2, window))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 20, 100, 1000])
@pytest.mark.parametrize(
    ("start", "num_rows"), [(0, 2), (0, 3), (0, 65), (1, 70), (63, 5), (200, 33), (7, 130)]
)
def test_rows_of_a_prompt_attend_causally(
    shape: Shape, window: int | None, start: int, num_rows: int
) -> None:
    story = Story(shape, BFLOAT16, start, num_rows)
    (out,) = attend([story], 0.2, window)
    assert_near(out, story.attended(0.2, window))


def test_prompts_and_single_rows_share_a_step() -> None:
    stories = [Story(SHAPES[0], BFLOAT16, start, n, n) for start, n in ((9, 1), (70, 1), (3, 40))]
    for out, story in zip(attend(stories, 0.2), stories, strict=True):
        assert_near(out, story.attended(0.2, None))


@pytest.mark.parametrize("num_rows", [1, 40])
def test_what_is_no_number_stays_in_its_sequence_and_shows(num_rows: int) -> None:
    broken, sound = (Story(SHAPES[0], BFLOAT16, 50, num_rows, seed) for seed in (1, 2))
    broken.keys[:, 7] = float("nan")
    out, other = attend([broken, sound], 0.2)
    assert out is None or out.isnan().all()
    assert_near(other, sound.attended(0.2, None))


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.parametrize("size", [1e3, 1e10, -1e32])
def test_huge_scores_are_shares_all_the_same(num_rows: int, size: float) -> None:
    story = Story(SHAPES[0], BFLOAT16, 50, num_rows)
    story.keys[:, 20] = story.keys[:, 3]  # two of the same: a share of the scores is not just one
    if size < 0:
        story.keys = story.keys.abs()
        story.query = story.query.abs()
    story.query *= size
    (out,) = attend([story], 0.125)
    assert out is None or out.isfinite().all()
    assert_near(out, story.attended(0.125, None))


def test_rows_may_be_views_of_any_kind() -> None:
    story = Story(SHAPES[0], BFLOAT16, 10, 1)
    key, value = story.new
    spread = story.query.transpose(1, 2).contiguous().transpose(1, 2)
    out, _ = StepAttention([(0, 1, 10)]).attend([story.slot(20)], spread, key, value, 0.2, None)
    assert_near(out, story.attended(0.2, None))


def test_heads_of_other_sizes_and_dtypes_are_left_to_others() -> None:
    def rows(size: int, dtype: torch.dtype = BFLOAT16) -> Tensor:
        return torch.zeros(1, 2, size, dtype=dtype)

    assert can_attend(rows(64), rows(64), rows(32))
    assert not can_attend(rows(8), rows(8), rows(8))
    assert not can_attend(rows(272), rows(272), rows(272))
    assert not can_attend(rows(64, torch.float16), rows(64, torch.float16), rows(64, torch.float16))
    assert not can_attend(rows(64), rows(64, torch.float32), rows(64))
