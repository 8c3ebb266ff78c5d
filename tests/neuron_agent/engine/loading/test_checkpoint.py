import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neuron_agent.engine.loading.checkpoint import INDEX_NAME, SINGLE_NAME, read_checkpoint
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
    (folder / SINGLE_NAME).unlink()
    (folder / INDEX_NAME).write_text('{"weight_map": {"a": "gone.safetensors"}}')
    refusal = refusal_of(folder)
    assert refusal.code == ErrorCode.LOAD_FAILED
    assert "gone.safetensors" in refusal.message


@pytest.mark.parametrize("name", ["config.json", SINGLE_NAME])
def test_a_folder_without_a_model_is_empty(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal_of(folder).code == ErrorCode.EMPTY_REPO


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", ".."])
def test_a_shard_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    (folder / SINGLE_NAME).unlink()
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": name}}))
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED


def test_pickles_are_told_from_no_weights(folder: Path) -> None:
    (folder / SINGLE_NAME).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert refusal_of(folder).code == ErrorCode.UNSUPPORTED_OPTION


def test_eight_bit_weights_want_a_config_that_explains_them(folder: Path) -> None:
    save_file({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, folder / SINGLE_NAME)
    assert refusal_of(folder).code == ErrorCode.UNSUPPORTED_OPTION
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    checkpoint = read_checkpoint(folder)
    assert checkpoint.is_quantised
    assert checkpoint.weight_bytes(item_bytes=2) == 3
    assert checkpoint.weight_bytes(item_bytes=2, is_expanded=True) == 6


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
    "header",
    [
        b"[]",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'"text"',
        b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e30]}}',
        b'{"a": ' + b"[" * 100_000,
    ],
)
def test_a_header_that_is_not_one_is_refused(folder: Path, header: bytes) -> None:
    (folder / SINGLE_NAME).write_bytes(len(header).to_bytes(8, "little") + header)
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED


def test_a_header_of_absurd_length_is_refused(folder: Path) -> None:
    (folder / SINGLE_NAME).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED
