"""Products with packed weights: near torch's, and to the last bit the same alone and in a crowd."""

import pytest
import torch
from torch import Tensor, nn

from neuron_agent.engine.cpu.products import (
    NativeEmbedding,
    NativeInt8Linear,
    NativeLinear,
    can_multiply,
    grouped,
    ungrouped,
)
from neuron_agent.engine.forwards.quantize import quantize_linear
from tests.neuron_agent.engine.cpu.conditions import needs_products

pytestmark = [needs_products, pytest.mark.usefixtures("num_threads")]

SIZES = pytest.mark.parametrize(("width", "outputs"), [(16, 1), (32, 64), (96, 130), (640, 65)])


def linear(width: int, outputs: int, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(width, outputs, bias=bias).requires_grad_(False)
    for number, tensor in enumerate(layer.parameters()):
        tensor.copy_(random(*tensor.shape, seed=number) / 8)
    return layer.bfloat16()


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def int8_of(layer: nn.Linear) -> NativeInt8Linear:
    rounded = quantize_linear(layer)
    return NativeInt8Linear(rounded.rounded, rounded.scales, rounded.bias)


def exact(layer: nn.Linear, inputs: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.linear(inputs.double(), layer.weight.double(), bias)


@SIZES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 6, 7, 16, 50])
def test_a_product_is_what_torch_gives(width: int, outputs: int, bias: bool, num_rows: int) -> None:
    layer = linear(width, outputs, bias=bias)
    inputs = random(num_rows, width).bfloat16()
    expected = exact(layer, inputs)
    ours = NativeLinear(layer)(inputs)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), expected, atol=2e-3, rtol=2**-8)
    nearly = int8_of(layer)(inputs)
    assert (nearly.double() - expected).abs().max() < 0.03 * expected.abs().max()


@SIZES
@pytest.mark.parametrize("form", [NativeLinear, int8_of])
def test_a_row_gives_the_same_alone_and_beside_any_others(
    form: type[NativeLinear], width: int, outputs: int
) -> None:
    layer = form(linear(width, outputs, bias=True))
    inputs = random(23, width).bfloat16()
    inputs[3, 5] = float("nan")
    together = layer(inputs)
    assert together[3].isnan().all()
    for row in (0, 2, 4, 22):
        assert torch.equal(layer(inputs[row : row + 1])[0], together[row])


@pytest.mark.parametrize("form", [NativeLinear, int8_of])
def test_inputs_may_have_any_shape_and_any_steps(form: type[NativeLinear]) -> None:
    layer = form(linear(32, 40, bias=False))
    inputs = random(3, 4, 64).bfloat16()
    expected = layer(inputs[..., :32].contiguous())
    assert expected.shape == (3, 4, 40)
    assert torch.equal(layer(inputs[..., :32]), expected)
    assert layer(inputs[:0, :, :32]).shape == (0, 4, 40)


def test_inputs_of_another_dtype_are_refused() -> None:
    layer = NativeLinear(linear(32, 40, bias=False))
    with pytest.raises(TypeError, match="float32"):
        layer(random(2, 32))


@SIZES
def test_the_weight_can_be_read_back(width: int, outputs: int) -> None:
    layer = linear(width, outputs, bias=False)
    assert torch.equal(NativeLinear(layer).weight, layer.weight)
    error = (int8_of(layer).weight.float() - layer.weight.float()).abs().max()
    assert error < 0.01 * layer.weight.abs().max()
    packed = grouped(layer.weight)
    assert packed.shape == (-(-outputs // 16), width // 2, 16)
    assert torch.equal(ungrouped(packed, torch.bfloat16)[:outputs], layer.weight)


def test_extreme_inputs_do_not_wrap_around() -> None:
    """The largest bytes with the largest weights, in every place: sums stay within 32 bits."""
    layer = NativeInt8Linear(torch.full((16, 4096), 127, dtype=torch.int8), torch.ones(16), None)
    inputs = torch.ones(2, 4096).bfloat16()
    inputs[1] *= -1
    assert layer(inputs)[:, 0].tolist() == pytest.approx([127 * 4096, -127 * 4096], rel=0.01)
    zeros = layer(torch.zeros(1, 4096).bfloat16())
    assert (zeros == 0).all()


def test_odd_widths_are_left_to_others() -> None:
    assert not can_multiply(40)
    assert not can_multiply(2**17 + 16)


@pytest.mark.parametrize("form", [NativeLinear, int8_of])
def test_an_embedding_may_read_the_heads_rows(form: type[NativeLinear]) -> None:
    head = form(linear(32, 50, bias=False))
    embedding = NativeEmbedding(head)
    ids = torch.tensor([[0, 49, 16], [17, 15, 0]])
    assert torch.equal(embedding(ids), head.weight[ids])
    assert embedding(ids).dtype == torch.bfloat16
    assert (embedding.num_embeddings, embedding.embedding_dim) == (50, 32)
    assert embedding(ids[:0]).shape == (0, 3, 32)
