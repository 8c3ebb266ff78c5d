"""The sums before a load and after it agree, on whatever device."""

import pytest
import torch
from transformers import PreTrainedModel

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.loading import needs
from neuron_agent.engine.loading.checkpoint import Checkpoint, StoredTensor
from neuron_agent.engine.loading.needs import (
    BUFFER_BYTES,
    kv_token_bytes_of,
    measured_needs,
    needs_by_config,
    weight_bytes_of,
)
from neuron_agent.engine.loading.sizing import ModelNeeds
from neuron_agent.scheduling.limits import limits_for
from neuron_agent.scheduling.pool import KvLayout
from tests.neuron_agent.tiny_models import build_tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COMMAND = LoadModel("m", "nowhere")


class Described:
    """A source whose headers are a tiny model's tensors."""

    is_gguf = False
    quant = None

    def __init__(self, kind: str) -> None:
        self.model = build_tiny(kind)
        self.config = self.model.config
        self.checkpoint = Checkpoint(
            tuple(
                StoredTensor(name, "F32", tuple(tensor.shape), tensor.nbytes)
                for name, tensor in self.model.named_parameters()
            )
        )

    def weight_bytes(self, dtype: torch.dtype) -> int:
        return self.checkpoint.weight_bytes(dtype.itemsize)

    def read(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        raise AssertionError("needs are told from headers")


def estimate(source: Described, device: torch.device = CPU, quant: str | None = None) -> ModelNeeds:
    return needs_by_config(COMMAND, source, device, torch.float32, quant)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3", "lfm2", "mamba"])
@pytest.mark.parametrize("quant", [None, "int8"])
def test_the_estimate_is_near_and_not_below(kind: str, quant: str | None) -> None:
    source = Described(kind)
    before = estimate(source, quant=quant)
    if quant is not None:
        quantize_model(source.model)
    weight_bytes = weight_bytes_of(source.model)
    after = measured_needs(COMMAND, source.model, weight_bytes, before.kv_token_bytes)
    assert after.workspace_bytes == before.workspace_bytes
    assert before.weight_bytes >= after.weight_bytes
    error_bytes = before.weight_bytes - BUFFER_BYTES - after.weight_bytes
    assert abs(error_bytes) <= 0.02 * weight_bytes


def test_blocks_and_graphs_are_counted_on_a_gpu() -> None:
    source = Described("qwen3")
    assert estimate(source, GPU).workspace_bytes > estimate(source).workspace_bytes
    assert estimate(source, GPU).weight_bytes == estimate(source).weight_bytes


def test_the_larger_steps_of_a_gpu_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Described("qwen3")
    counted = estimate(source, GPU).workspace_bytes
    monkeypatch.setattr(needs, "limits_for", lambda _layout: limits_for(KvLayout.SLOTS))
    assert counted > estimate(source, GPU).workspace_bytes


def test_a_smaller_context_needs_less() -> None:
    source = Described("qwen3")
    small = LoadModel("m", "nowhere", max_context=64)
    wanted = needs_by_config(small, source, CPU, torch.float32, None)
    assert wanted.context_tokens == 64
    assert wanted.workspace_bytes < estimate(source).workspace_bytes


def test_every_layer_keeps_keys_and_values_of_its_shared_heads() -> None:
    config = build_tiny("qwen3").config
    assert kv_token_bytes_of(config, torch.bfloat16) == 2 * 2 * 2 * 32 * 2
