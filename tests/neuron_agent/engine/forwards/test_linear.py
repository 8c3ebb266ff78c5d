import pytest
import torch
from torch import Tensor, nn

from neuron_agent.engine.forwards.linear import (
    PackedLinear,
    can_pack,
    is_bfloat16_fast,
    join_linears,
)


def linear(num_inputs: int, num_outputs: int, *, bias: bool = False, seed: int = 1) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs, bias=bias).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for tensor in layer.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 8)
    return layer


def random_rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(0, 40), (1, 40), (3, 40), (4, 40), (17, 40), (2, 3, 40)])
def test_a_packed_layer_gives_what_it_gave(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    if not can_pack(dtype):
        pytest.skip("this machine does not pack it")
    plain = linear(40, 211, bias=bias).to(dtype)
    layer = PackedLinear(plain)
    inputs = random_rows(*shape).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(layer(inputs), plain(inputs), atol=tolerance, rtol=tolerance)
    assert torch.equal(layer.weight, plain.weight), "code that reads the weight finds it"


def test_what_a_machine_cannot_pack_it_says() -> None:
    assert not can_pack(torch.float16)
    assert not can_pack(torch.float64)


@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_give_what_each_gives_and_share_their_memory(bias: bool) -> None:
    parts = [linear(32, size, bias=bias, seed=size) for size in (16, 8, 8)]
    inputs = random_rows(3, 32)
    expected = torch.cat([part(inputs) for part in parts], -1)
    joined = join_linears(parts)
    torch.testing.assert_close(joined(inputs), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(torch.cat([part(inputs) for part in parts], -1), expected)
    store = joined.weight.untyped_storage().data_ptr()
    assert all(part.weight.untyped_storage().data_ptr() == store for part in parts)


def test_bfloat16_is_fast_on_every_gpu() -> None:
    assert is_bfloat16_fast(torch.device("cuda"))
