"""int8 layers: near what they replace, the same alone and in a crowd, and really smaller."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from neuron_agent.engine.forwards import quantize
from neuron_agent.engine.forwards.quantize import (
    Int8Linear,
    PackedInt8Linear,
    can_pack_int8,
    join_int8,
    quantize_linear,
    quantize_model,
)
from tests.neuron_agent.tiny_models import build_tiny

FORMS = [
    lambda layer: layer,
    pytest.param(
        PackedInt8Linear,
        marks=pytest.mark.skipif(not can_pack_int8(), reason="no int8 products on this machine"),
    ),
]


def linear(num_inputs: int, num_outputs: int, *, bias: bool = False, seed: int = 1) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs, bias=bias).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for tensor in layer.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) / 8)
    return layer


def random_rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_are_near_those_of_the_layer_it_replaces(
    form: type[PackedInt8Linear], dtype: torch.dtype, bias: bool
) -> None:
    plain = linear(96, 48, bias=bias).to(dtype)
    layer = form(quantize_linear(plain))
    inputs = random_rows(2, 5, 96).to(dtype)
    expected, got = plain(inputs), layer(inputs)
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_code_that_reads_the_weight_finds_it(form: type[PackedInt8Linear]) -> None:
    plain = linear(40, 24, bias=True).bfloat16()
    weight = form(quantize_linear(plain)).weight
    assert weight.dtype == torch.bfloat16
    assert (weight - plain.weight).abs().max() < 0.01 * plain.weight.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_the_same_alone_and_beside_a_far_larger_one(form: type[PackedInt8Linear]) -> None:
    layer = form(quantize_linear(linear(64, 32)))
    rows = random_rows(9, 64)
    rows[4] *= 1000
    crowd = layer(rows)
    for place in range(9):
        alone = layer(rows[place : place + 1])[0]
        torch.testing.assert_close(crowd[place], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_zeros_gives_the_bias_and_nan_stays_nan(form: type[PackedInt8Linear]) -> None:
    plain = linear(16, 8, bias=True)
    layer = form(quantize_linear(plain))
    rows = torch.stack((torch.zeros(16), torch.full((16,), float("nan"))))
    zeros, broken = layer(rows)
    assert torch.allclose(zeros, plain.bias)
    assert torch.isnan(broken).all()


def test_weights_that_are_whole_multiples_of_their_scale_are_kept_exactly() -> None:
    plain = linear(4, 2)
    plain.weight.copy_(torch.tensor([[127.0, 1, -64, 0], [-12.7, 0.1, 6.4, 0]]))
    assert quantize_linear(plain).rounded.tolist() == [[127, 1, -64, 0], [-127, 1, 64, 0]]


@pytest.mark.parametrize("bias", [False, True])
def test_joined_layers_give_exactly_what_each_gives_and_share_their_memory(bias: bool) -> None:
    parts = [quantize_linear(linear(32, size, bias=bias, seed=size)) for size in (16, 8, 8)]
    inputs = random_rows(3, 32)
    expected = torch.cat([part(inputs) for part in parts], -1)
    joined = join_int8(parts)
    torch.testing.assert_close(joined(inputs), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(joined.rounded, torch.cat([part.rounded for part in parts]))
    store = joined.rounded.untyped_storage().data_ptr()
    assert all(part.rounded.untyped_storage().data_ptr() == store for part in parts)


def test_a_quantised_model_says_nearly_the_same_in_a_third_of_the_memory() -> None:
    model = build_tiny("qwen3").requires_grad_(False)
    whole = sum(tensor.nbytes for tensor in model.parameters())
    ids = torch.arange(20)[None]
    before = model(input_ids=ids).logits[0]
    quantize_model(model)
    after = model(input_ids=ids).logits[0]
    assert torch.cosine_similarity(before, after, dim=-1).min() > 0.99
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 2 * 7 + 1  # per layer q, k, v, o, gate, up, down; and the head
    held = [*model.parameters(), *(tensor for layer in layers for tensor in layer.buffers())]
    assert sum(tensor.nbytes for tensor in held) < whole / 2


def test_a_head_that_is_the_embedding_stays_as_it_is() -> None:
    model = build_tiny("gemma3").requires_grad_(False)
    quantize_model(model)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_layers_weights_are_gone_before_all_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny("qwen3").requires_grad_(False)
    seen: list[weakref.ref[nn.Linear]] = []
    num_alive: list[int] = []
    original = quantize.quantize_linear

    def watched(linear: nn.Linear, dtype: torch.dtype | None = None) -> Int8Linear:
        seen.append(weakref.ref(linear))
        num_alive.append(sum(layer() is not None for layer in seen))
        return original(linear, dtype)

    monkeypatch.setattr(quantize, "quantize_linear", watched)
    quantize_model(model)
    assert len(num_alive) == 2 * 7 + 1
    assert max(num_alive) < 7


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="int3"):
        quantize_model(build_tiny("qwen3"), "int3")
