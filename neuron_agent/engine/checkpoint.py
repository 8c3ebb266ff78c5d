"""What a model folder holds, read from its small files and headers before any weight is.

It knows the safetensors layout (eight bytes of header length, a JSON header, the data) and the
names that Hugging Face folders use. It knows neither torch nor transformers.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library
FLOATING = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OTHER = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    dtype: str
    num_elements: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    tensors: tuple[StoredTensor, ...]

    @property
    def file_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    def weight_bytes(self, item_bytes: int) -> int:
        """Bytes once loaded: floating-point tensors take the dtype of the load, others stay."""
        return sum(
            tensor.num_elements * item_bytes if tensor.dtype in FLOATING else tensor.num_bytes
            for tensor in self.tensors
        )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's weight headers, and its config as far as it rules a load out.

    Raises LoadRefused: empty_repo without config or weights, unsupported_option for weights we
    do not read yet, load_failed for files that are broken or incomplete.
    """
    if not (folder / "config.json").is_file():
        raise LoadRefused(ErrorCode.EMPTY_REPO, "the folder has no config.json")
    if _read_json(folder / "config.json").get("quantization_config"):
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION,
            "the weights are quantised already, which is not supported yet",
            hint="load the model's unquantised repository",
        )
    files = _weight_files(folder)
    return Checkpoint(tuple(tensor for file in files for tensor in _read_header(file)))


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX_NAME).is_file():
        names = _read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise LoadRefused(ErrorCode.LOAD_FAILED, f"{INDEX_NAME} names no weights")
        files = [folder / name for name in sorted(set(names.values()))]
    else:
        files = [folder / SINGLE_NAME]
        if not files[0].is_file():
            raise _without_safetensors(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"weights are missing: {', '.join(missing[:3])}")
    return files


def _without_safetensors(folder: Path) -> LoadRefused:
    others = {path.suffix for path in folder.iterdir()} & {".bin", ".gguf", ".pt", ".pth"}
    if not others:
        return LoadRefused(ErrorCode.EMPTY_REPO, "the folder has no safetensors weights")
    return LoadRefused(
        ErrorCode.UNSUPPORTED_OPTION,
        f"the weights are {' and '.join(sorted(others))} files, which are not supported yet",
        hint="use a repository with safetensors weights",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{file.name} is not JSON") from error
    if not isinstance(value, dict):
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{file.name} is not a JSON object")
    return value


def _read_header(file: Path) -> list[StoredTensor]:
    """Read a safetensors header; check that the file is as long as the header says."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        raw = stream.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = [_stored_tensor(entry) for entry in header.values()]
        data_bytes = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{file.name} is not safetensors") from error
    if file.stat().st_size < 8 + length + data_bytes:
        raise LoadRefused(
            ErrorCode.LOAD_FAILED, f"{file.name} is cut short", hint="fetch the model again"
        )
    return tensors


def _stored_tensor(entry: dict[str, Any]) -> StoredTensor:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in FLOATING and dtype not in OTHER:
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION,
            f"the weights are stored as {dtype}, which is not supported yet",
            hint="load the model's unquantised repository",
        )
    return StoredTensor(dtype, math.prod(shape), end - start)
