"""A piece of a prompt sees what it should: by the book, in float32, whatever the dtype."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuron_agent.engine.forwards.prompt_attention import ROWS, attend_prompt, filled_up

SIZE, VALUE_SIZE = 8, 6
SCALE = SIZE**-0.5
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03}


@pytest.fixture(autouse=True)
def memory_holds_no_numbers() -> Iterator[None]:
    """What torch gives out unwritten is NaN here: nothing may be read that was not written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def by_the_book(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """[n, H, Dv] in float32."""
    num_rows, num_groups = len(query), query.shape[1] // len(keys)
    keys, values = (each.float().repeat_interleave(num_groups, 0) for each in (keys, values))
    scores = query.float().transpose(0, 1) @ keys.transpose(1, 2) * SCALE  # [H, n, N]
    distance = torch.arange(keys.shape[1] - num_rows, keys.shape[1]).unsqueeze(1) - torch.arange(
        keys.shape[1]
    )
    hidden = (distance < 0) | (distance >= (window or keys.shape[1]))
    return (scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values).transpose(0, 1)


def no_numbers(num_shared: int, size: int, dtype: torch.dtype) -> Tensor:
    return torch.full((num_shared, 3, size), torch.nan, dtype=dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@given(
    start=st.sampled_from([0, 1, 5, ROWS, 2 * ROWS + 7]),
    num_rows=st.sampled_from([2, 9, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS + 30]),
    num_shared=st.sampled_from([1, 3]),
    num_groups=st.sampled_from([1, 2]),
    window=st.sampled_from([None, 1, 2, 7, ROWS - 1, ROWS, ROWS + 2, 200, 10_000]),
)
@settings(deadline=None)
def test_each_row_sees_itself_and_what_its_window_holds(
    dtype: torch.dtype,
    start: int,
    num_rows: int,
    num_shared: int,
    num_groups: int,
    window: int | None,
) -> None:
    generator = torch.Generator().manual_seed(start + num_rows)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    # As they come: heads beside others, and slots with room behind what is kept.
    query = some(num_rows, num_shared * (num_groups + 1), SIZE)[:, : num_shared * num_groups]
    num_keys = start + num_rows
    room = filled_up(num_keys)
    keys = torch.cat((some(num_shared, room, SIZE), no_numbers(num_shared, SIZE, dtype)), 1)
    values = torch.cat(
        (some(num_shared, room, VALUE_SIZE), no_numbers(num_shared, VALUE_SIZE, dtype)), 1
    )
    out = attend_prompt(query, keys, values, num_keys, SCALE, window, {})
    assert out.dtype == dtype
    expected = by_the_book(query, keys[:, :num_keys], values[:, :num_keys], window)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)


def test_a_step_makes_a_mask_once() -> None:
    query, keys = torch.randn(4, 2, SIZE), torch.randn(2, 9, SIZE)
    masks: dict[tuple[int, int, int | None], Tensor | None] = {}
    first = attend_prompt(query, keys, keys, 9, SCALE, None, masks)
    (made,) = masks.values()
    again = attend_prompt(query, keys, keys, 9, SCALE, None, masks)
    assert next(iter(masks.values())) is made
    assert torch.equal(first, again)
