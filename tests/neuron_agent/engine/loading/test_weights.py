"""Folders whose weights are quantised already: as transformers can read them here, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.quantizers import auto

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.loading.weights import SafetensorsFolder, open_source
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from tests.neuron_agent.engine.workbench import CPU, load
from tests.neuron_agent.tiny_models import build_tiny, save_tiny


def describe(folder: Path, entry: dict[str, object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
    return folder


def refusal_of(action: Callable[[], object]) -> LoadRefused:
    with pytest.raises(LoadRefused) as caught:
        action()
    assert caught.value.code == ErrorCode.UNSUPPORTED_OPTION
    return caught.value


@pytest.mark.parametrize(
    "entry",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        {"quant_method": "awq", "bits": 4, "group_size": 32},
        {"quant_method": "nonesuch"},
        {"bits": 4},
    ],
)
def test_a_method_that_lacks_something_here_is_refused(
    tmp_path: Path, entry: dict[str, object]
) -> None:
    folder = describe(save_tiny(tmp_path), entry)
    refusal = refusal_of(lambda: open_source(LoadModel("m", str(folder)), CPU))
    assert str(entry.get("quant_method", "unknown")) in refusal.message
    assert str(folder) not in refusal.message


class ReadableQuantizer:
    """A method whose libraries are there."""

    def __init__(self, entry: dict[str, object]) -> None:
        self.quantization_config = type("Config", (), {"dequantize": True})

    def validate_environment(self, **_about: object) -> None:
        """All is well."""


@pytest.fixture
def eight_bit_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = describe(save_tiny(tmp_path), {"quant_method": "fp8"})
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(
        auto.AutoHfQuantizer, "from_config", lambda entry, pre_quantized: ReadableQuantizer(entry)
    )
    return folder


def test_a_method_that_is_there_is_reported_and_counted(eight_bit_folder: Path) -> None:
    source = open_source(LoadModel("m", str(eight_bit_folder)), CPU)
    assert source.quant == "fp8"
    plain = open_source(LoadModel("m", str(save_tiny(eight_bit_folder / "plain"))), CPU)
    assert source.weight_bytes(torch.bfloat16) == plain.weight_bytes(torch.bfloat16)
    assert source.checkpoint.file_bytes < plain.checkpoint.file_bytes


def test_a_method_that_is_asked_for_is_the_one_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(LoadRefused) as caught:
        load(save_tiny(tmp_path), quant="fp8")
    assert caught.value.code == ErrorCode.QUANT_NOT_FOUND


def test_quantised_weights_are_not_quantised_again(eight_bit_folder: Path) -> None:
    assert "fp8" in refusal_of(lambda: load(eight_bit_folder, quant="int8")).message


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["qwen2", "llama_tied"])
def test_int8_of_a_widened_model_never_holds_it_widened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stored: torch.dtype
) -> None:
    build_tiny(kind).to(stored).save_pretrained(tmp_path)
    command = LoadModel("m", str(tmp_path))
    expected = open_source(command, CPU).read(CPU, torch.float32)
    quantize_model(expected)
    read = SafetensorsFolder.read
    dtypes: list[torch.dtype] = []

    def watched(*about: Any) -> PreTrainedModel:
        dtypes.append(about[2])
        return read(*about)

    monkeypatch.setattr(SafetensorsFolder, "read", watched)
    found = open_source(command, CPU).read_int8(CPU, torch.float32)
    assert dtypes == [stored]
    assert found.dtype is torch.float32
    ids = torch.arange(20)[None]
    assert torch.equal(found(ids).logits, expected(ids).logits)
