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
EIGHT_BIT_FLOATING = frozenset(["F8_E4M3", "F8_E5M2", "F8_E8M0"])
OTHER = frozenset(["I64", "U64", "I32", "U32", "I16", "U16", "I8", "U8", "BOOL"])
PACKED = "packed"
"""The dtype of what lies in blocks of some quantisation and becomes floating when it is read."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of the files, by the name it has in the model."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    tensors: tuple[StoredTensor, ...]
    is_quantised: bool = False
    """transformers has to know how to read the weights: the config says in which way."""

    @property
    def file_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    def weight_bytes(self, item_bytes: int, *, is_expanded: bool = False) -> int:
        """Bytes once loaded: floating-point tensors take the dtype of the load, others stay.

        With `is_expanded`, eight-bit floating-point tensors take it as well.
        """
        return sum(
            tensor.num_elements * item_bytes
            if becomes_floating(tensor.dtype, is_expanded=is_expanded)
            else tensor.num_bytes
            for tensor in self.tensors
        )


def becomes_floating(dtype: str, *, is_expanded: bool = False) -> bool:
    return dtype in FLOATING or dtype == PACKED or (is_expanded and dtype in EIGHT_BIT_FLOATING)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a folder's weight headers, and its config as far as it rules a load out.

    Raises LoadRefused: empty_repo without config or weights, unsupported_option for weights that
    are not read here, load_failed for files that are broken or incomplete.
    """
    if not (folder / "config.json").is_file():
        raise LoadRefused(ErrorCode.EMPTY_REPO, "the folder has no config.json")
    is_quantised = bool(_read_json(folder / "config.json").get("quantization_config"))
    files = _weight_files(folder)
    tensors = tuple(tensor for file in files for tensor in _read_header(file))
    if not is_quantised:
        _check_readable(tensors)
    return Checkpoint(tensors, is_quantised)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of the weights, chosen as transformers will choose them."""
    if (folder / SINGLE_NAME).is_file():
        return [folder / SINGLE_NAME]
    if not (folder / INDEX_NAME).is_file():
        raise _without_safetensors(folder)
    names = _read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{INDEX_NAME} names no weights")
    files = [_within(folder, name) for name in sorted(set(map(str, names.values())))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"weights are missing: {', '.join(missing[:3])}")
    return files


def _within(folder: Path, name: str) -> Path:
    """Return the file of a name that a stranger wrote. It lies beside the index or nowhere."""
    if Path(name).name != name:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{INDEX_NAME} names a file outside its folder")
    return folder / name


def _without_safetensors(folder: Path) -> LoadRefused:
    others = {path.suffix for path in folder.iterdir()} & {".bin", ".pt", ".pth"}
    if not others:
        return LoadRefused(ErrorCode.EMPTY_REPO, "the folder has no safetensors weights")
    return LoadRefused(
        ErrorCode.UNSUPPORTED_OPTION,
        f"the weights are {' and '.join(sorted(others))} files, which can run code when read",
        hint="use a repository with safetensors or GGUF weights",
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
        tensors = [_stored_tensor(name, entry) for name, entry in header.items()]
        data_bytes = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{file.name} is not safetensors") from error
    except RecursionError as error:
        raise LoadRefused(ErrorCode.LOAD_FAILED, f"{file.name} is nested absurdly") from error
    if file.stat().st_size < 8 + length + data_bytes:
        raise LoadRefused(
            ErrorCode.LOAD_FAILED, f"{file.name} is cut short", hint="fetch the model again"
        )
    return tensors


def _stored_tensor(name: str, entry: dict[str, Any]) -> StoredTensor:
    """Return an entry of a header. Raises ValueError if its numbers contradict each other."""
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not all(isinstance(size, int) and size >= 0 for size in [*shape, start, end]):
        raise ValueError(name)
    if dtype in FLOATING and math.prod(shape) * FLOATING[dtype] != end - start:
        raise ValueError(name)
    return StoredTensor(name, dtype, tuple(shape), end - start)


def _check_readable(tensors: tuple[StoredTensor, ...]) -> None:
    for tensor in tensors:
        if tensor.dtype not in FLOATING and tensor.dtype not in OTHER:
            raise LoadRefused(
                ErrorCode.UNSUPPORTED_OPTION,
                f"the weights are stored as {tensor.dtype}, and the config does not say how",
                hint="load the model's unquantised repository",
            )
