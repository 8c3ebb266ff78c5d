import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuron_agent.engine.checkpoint import INDEX_NAME, SINGLE_NAME, read_checkpoint
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    tensors = {
        "a": torch.zeros(3, 5, dtype=torch.bfloat16),
        "b": torch.zeros(7),
        "steps": torch.zeros(2, dtype=torch.int64),
    }
    save_file(tensors, tmp_path / SINGLE_NAME)
    return tmp_path


def refusal_of(folder: Path) -> LoadRefused:
    with pytest.raises(LoadRefused) as caught:
        read_checkpoint(folder)
    assert str(folder) not in caught.value.message, "no path of the host goes to a client"
    return caught.value


def test_sizes_come_from_the_headers(folder: Path) -> None:
    checkpoint = read_checkpoint(folder)
    assert checkpoint.file_bytes == 15 * 2 + 7 * 4 + 2 * 8
    assert checkpoint.weight_bytes(item_bytes=4) == (15 + 7) * 4 + 2 * 8


def test_shards_are_found_by_the_index(folder: Path) -> None:
    (folder / SINGLE_NAME).rename(folder / "one.safetensors")
    save_file({"c": torch.zeros(4)}, folder / "two.safetensors")
    save_file({"d": torch.zeros(1000)}, folder / "unused.safetensors")
    weight_map = {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    assert read_checkpoint(folder).file_bytes == 15 * 2 + 7 * 4 + 2 * 8 + 4 * 4


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / INDEX_NAME).write_text('{"weight_map": {"a": "gone.safetensors"}}')
    refusal = refusal_of(folder)
    assert refusal.code == ErrorCode.LOAD_FAILED
    assert "gone.safetensors" in refusal.message


@pytest.mark.parametrize("name", ["config.json", SINGLE_NAME])
def test_a_folder_without_a_model_is_empty(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal_of(folder).code == ErrorCode.EMPTY_REPO


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf"])
def test_weights_of_another_kind_are_told_from_none(folder: Path, name: str) -> None:
    (folder / SINGLE_NAME).unlink()
    (folder / name).write_bytes(b"x")
    assert refusal_of(folder).code == ErrorCode.UNSUPPORTED_OPTION


def test_quantised_weights_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    assert refusal_of(folder).code == ErrorCode.UNSUPPORTED_OPTION


def test_a_dtype_that_we_do_not_read_is_refused(folder: Path) -> None:
    save_file({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, folder / SINGLE_NAME)
    assert refusal_of(folder).code == ErrorCode.UNSUPPORTED_OPTION


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED


@pytest.mark.parametrize("keep_bytes", [0, 4, 20, -1])
def test_a_file_cut_short_is_refused(folder: Path, keep_bytes: int) -> None:
    file = folder / SINGLE_NAME
    file.write_bytes(file.read_bytes()[:keep_bytes])
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED


@pytest.mark.parametrize(
    "header", [b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1]}}', b'"text"']
)
def test_a_header_that_is_not_one_is_refused(folder: Path, header: bytes) -> None:
    (folder / SINGLE_NAME).write_bytes(len(header).to_bytes(8, "little") + header)
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED
