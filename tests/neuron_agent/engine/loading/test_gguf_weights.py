"""A GGUF's weights are those of the model it was made of, on the way through every packing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.loading import gguf_weights
from neuron_agent.engine.loading.gguf_weights import GgufWeights
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from tests.neuron_agent.sources.gguf_models import write_gguf
from tests.neuron_agent.tiny_models import SHAPE, build_tiny

CPU = torch.device("cpu")
IDS = torch.arange(20, 60)[None]
PACKED = ("F16", "BF16", "Q8_0", "Q4_0", "Q5_0")


def build(kind: str) -> PreTrainedModel:
    """Return a tiny model; qwen2's biases are not all zero."""
    if kind != "qwen2":
        return build_tiny(kind)
    torch.manual_seed(7)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    return model


def build_tied() -> PreTrainedModel:
    torch.manual_seed(7)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)).eval()


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    result: torch.Tensor = model(IDS).logits
    return result


def read(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return GgufWeights(path).read(CPU, dtype)


def refusal_of(path: Path) -> LoadRefused:
    with pytest.raises(LoadRefused) as caught:
        GgufWeights(path)
    assert str(path.parent) not in caught.value.message
    return caught.value


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_plain_weights_are_the_same_to_the_bit(tmp_path: Path, kind: str) -> None:
    """llama's rows are in another order in the file; mistral's window is beside them."""
    model = build(kind)
    source = GgufWeights(write_gguf(tmp_path / "m.gguf", model))
    assert source.quant is None
    assert torch.equal(logits(source.read(CPU, torch.float32)), logits(model))


@pytest.mark.parametrize("packing", PACKED)
def test_packed_weights_are_as_gguf_unpacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    monkeypatch.setattr(gguf_weights, "STRETCH_ELEMENTS", 96)  # three blocks: many stretches
    model = build("qwen3")
    original = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    kind = GGMLQuantizationType[packing]
    expected = quants.dequantize(quants.quantize(original, kind), kind)
    found = read(write_gguf(tmp_path / "m.gguf", model, packing)).model.layers[1].mlp.down_proj
    torch.testing.assert_close(found.weight, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)


def test_a_loss_of_precision_is_the_quantisations_alone(tmp_path: Path) -> None:
    model = build("llama")
    likeness = torch.nn.functional.cosine_similarity(
        logits(read(write_gguf(tmp_path / "m.gguf", model, "Q8_0"))).flatten(),
        logits(model).flatten(),
        dim=0,
    )
    assert 0.99 < likeness < 1.0


def test_parts_and_dtype(tmp_path: Path) -> None:
    model = build("qwen3")
    path = write_gguf(tmp_path / "m.gguf", model, "Q8_0", tensors_per_file=5)
    assert len(list(tmp_path.iterdir())) > 3
    source = GgufWeights(path)
    assert (source.quant, source.is_gguf) == ("Q8_0", True)
    found = source.read(CPU, torch.bfloat16)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}
    assert found.model.rotary_emb.inv_freq.dtype is torch.float32, "angles stay exact"
    num_bytes = sum(parameter.nbytes for parameter in found.parameters())
    assert source.weight_bytes(torch.bfloat16) == num_bytes


def test_an_embedding_that_is_the_output_too_is_kept_once(tmp_path: Path) -> None:
    model = build_tied()
    source = GgufWeights(write_gguf(tmp_path / "m.gguf", model))
    found = source.read(CPU, torch.float32)
    assert found.lm_head.weight is found.model.embed_tokens.weight
    assert torch.equal(logits(found), logits(model))


def test_numbers_that_need_no_change_stay_in_the_mapped_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", build("qwen3"))
    before = path.read_bytes()
    found = read(path)
    found.model.norm.weight.data.fill_(0.0)
    assert path.read_bytes() == before, "nobody writes to it"


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_int8_is_made_as_the_tensors_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", build(kind), "Q8_0")
    expected = read(path)
    quantize_model(expected)
    num_whole: list[int] = []
    put = gguf_weights._put

    def watched(model: PreTrainedModel, *about: Any) -> None:
        put(model, *about)
        layers = (m for m in model.modules() if type(m) is nn.Linear)
        num_whole.append(sum(not any(p.is_meta for p in m.parameters()) for m in layers))

    monkeypatch.setattr(gguf_weights, "_put", watched)
    found = GgufWeights(path).read_int8(CPU, torch.float32)
    assert max(num_whole) == 1
    assert torch.equal(logits(found), logits(expected))


def test_llamas_stretched_rotation_is_in_a_tensor(tmp_path: Path) -> None:
    model = build("llama")
    divisors = torch.linspace(1, 8, 16)
    path = write_gguf(tmp_path / "m.gguf", model, extra_tensors={"rope_freqs.weight": divisors})
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq / divisors
    assert torch.equal(logits(read(path)), logits(model))


def test_a_tensor_without_a_place_is_not_left_out(tmp_path: Path) -> None:
    extra = {"blk.0.attn_sinks.weight": torch.ones(4)}
    path = write_gguf(tmp_path / "m.gguf", build("llama"), extra_tensors=extra)
    refusal = refusal_of(path)
    assert refusal.code == ErrorCode.UNSUPPORTED_ARCHITECTURE
    assert "attn_sinks" in refusal.message


def test_a_missing_tensor_is_not_made_up(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", build("llama"), leave_out="blk.1.ffn_up.weight")
    refusal = refusal_of(path)
    assert refusal.code == ErrorCode.LOAD_FAILED
    assert "up_proj" in refusal.message


@pytest.mark.parametrize(
    "facts",
    [
        {"feed_forward_length": 95},
        {"attention.head_count": 0},
        {"attention.head_count": "many"},
        {"block_count": 2**31 - 1},
        {"block_count": 1},
        {"embedding_length": 2**30},
        {"attention.head_count_kv": 3},
    ],
)
def test_numbers_that_contradict_the_tensors_are_refused(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    path = write_gguf(tmp_path / "m.gguf", build("llama"), facts=facts)
    assert refusal_of(path).code == ErrorCode.LOAD_FAILED


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", build("llama"))
    path.write_bytes(path.read_bytes()[:-100])
    assert refusal_of(path).code == ErrorCode.LOAD_FAILED
