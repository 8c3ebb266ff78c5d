"""The compiled steps of a layer give what torch's do."""

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.cpu.native import native
from neuron_agent.engine.cpu.steps import NativeSteps, can_step
from neuron_agent.engine.forwards.layer_steps import StepShape, TorchSteps
from tests.neuron_agent.engine.cpu.conditions import needs_kernels, portable_kernels

pytestmark = needs_kernels

HEADS, SHARED, SIZE = 6, 2, 64
SHAPE = StepShape(HEADS + SHARED, SIZE, 1e-6, 0.7 ** torch.arange(SIZE // 2), 1.25)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
ROWS = pytest.mark.parametrize("num_rows", [1, 2, 17, 100])


@pytest.fixture(params=["own", "portable"])
def ours(request: pytest.FixtureRequest) -> NativeSteps:
    """With the machine's own kernels, and with what other machines would get."""
    kernels = native() if request.param == "own" else portable_kernels()
    assert kernels is not None
    return NativeSteps(SHAPE, kernels)


theirs = TorchSteps(SHAPE)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, expected: Tensor) -> None:
    """`expected` in float32: what is rounded once may differ by half of the last digit."""
    error = 1e-5 if ours.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(ours.float(), expected, atol=error / 10, rtol=error)


@DTYPES
@ROWS
def test_rows_are_normed(ours: NativeSteps, dtype: torch.dtype, num_rows: int) -> None:
    rows, weight = random(num_rows, 48).to(dtype), random(48, seed=2).to(dtype)
    assert_near(ours.norm(rows, weight), theirs.norm(rows.float(), weight.float()))


@DTYPES
@ROWS
@pytest.mark.parametrize("has_norms", [True, False])
def test_heads_are_turned_and_values_are_left_alone(
    ours: NativeSteps, dtype: torch.dtype, num_rows: int, has_norms: bool
) -> None:
    rows = random(num_rows, (HEADS + 2 * SHARED) * SIZE).to(dtype)
    norms = random(HEADS + SHARED, SIZE, seed=2).to(dtype) if has_norms else None
    positions = 3 * torch.arange(num_rows)
    expected = theirs.turned(
        rows.float(),
        theirs.turns(positions, torch.float32),
        None if norms is None else norms.float(),
    )
    values = rows[:, (HEADS + SHARED) * SIZE :].clone()
    turned = ours.turned(rows, ours.turns(positions, dtype), norms)
    error = 1e-4 if dtype == torch.float32 else 0.03  # normed heads are rounded before they turn
    torch.testing.assert_close(turned.float(), expected, atol=error, rtol=error)
    assert torch.equal(rows[:, (HEADS + SHARED) * SIZE :], values)


@DTYPES
@ROWS
def test_the_gate_is_applied(ours: NativeSteps, dtype: torch.dtype, num_rows: int) -> None:
    rows = (8 * random(num_rows, 2 * 80)).to(dtype)
    rows[0, :4] = torch.tensor([300.0, -300.0, -1e37, -3e38])  # as far as exponentials go, and on
    assert_near(ours.gated(rows), theirs.gated(rows.float()))


@DTYPES
def test_what_is_no_number_stays_in_its_row(ours: NativeSteps, dtype: torch.dtype) -> None:
    rows, weight = random(4, 64).to(dtype), torch.ones(64, dtype=dtype)
    sound_norm, sound_gate = ours.norm(rows, weight), ours.gated(rows)
    rows[2, 5] = float("nan")
    normed, gated = ours.norm(rows, weight), ours.gated(rows)
    assert normed[2].isnan().all()
    assert gated[2, 5].isnan()
    others = [0, 1, 3]
    assert torch.equal(normed[others], sound_norm[others])
    assert torch.equal(gated[others], sound_gate[others])


def test_only_sizes_of_whole_vectors_are_done() -> None:
    assert can_step(torch.bfloat16, 64, 640, 1792)
    assert not can_step(torch.bfloat16, 48, 640)
    assert not can_step(torch.bfloat16, 64, 650)
    assert not can_step(torch.float16, 64, 640)


def test_an_infinite_gate_is_as_in_torch(ours: NativeSteps) -> None:
    rows = torch.tensor([[float("inf"), float("-inf")] + [1.0] * 30])
    assert_near(ours.gated(rows).nan_to_num(7.0), theirs.gated(rows).nan_to_num(7.0))
