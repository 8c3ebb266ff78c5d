"""What a GGUF file says before its weights: metadata, and where each tensor lies.

The layout is that of llama.cpp's gguf.md, versions 2 and 3, little-endian: magic, counts, typed
key-value pairs, a table of tensors, then the data. Every length and offset is checked against the
file before it is believed. It knows neither torch nor tokenizers, and reads no tensor.
"""

import mmap
import re
import struct
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32

# Types of metadata values, by number: how to unpack them.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


class BadGguf(Exception):
    """The file is no GGUF, is damaged, or holds what nobody here can read."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` is in torch's order, `start` counts from the beginning of `file`."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    file: Path
    start: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A model in one GGUF file, or in several parts whose first one carries the metadata."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    def of_architecture(self, key: str, otherwise: Any = None) -> Any:
        """Return the value of `<architecture>.<key>`."""
        return self.metadata.get(f"{self.architecture}.{key}", otherwise)


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a model, all its parts. Raises BadGguf, and OSError from the disk."""
    metadata: dict[str, Any] = {}
    tensors: dict[str, GgufTensor] = {}
    for part in (path.with_name(name) for name in part_names(path.name)):
        if not part.is_file():
            raise BadGguf(f"{part.name} is missing")
        found, of_part = _read_part(part)
        metadata = metadata or found
        for tensor in of_part:
            if tensors.setdefault(tensor.name, tensor) is not tensor:
                raise BadGguf(f"{part.name} holds {tensor.name} twice")
    if not metadata.get("general.architecture"):
        raise BadGguf(f"{path.name} names no architecture")
    return GgufFile(metadata, tensors)


def part_names(name: str) -> list[str]:
    """Return the names of a model's files: one, or all parts if the name says it is one of them."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    stem, count = match["stem"], int(match["count"])
    if count < 1:
        return [name]
    return [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def is_later_part(name: str) -> bool:
    """Whether a file is a part other than the first, which stands for all of them."""
    match = _PART.fullmatch(name)
    return match is not None and int(match["number"]) != 1


def quant_name(metadata: dict[str, Any]) -> str | None:
    """Return how the weights were quantised, in the usual letters; None if they were not."""
    from gguf.constants import LlamaFileType

    try:
        name = LlamaFileType(metadata.get("general.file_type", -1)).name
    except ValueError:
        return None
    short = name.removeprefix("MOSTLY_").removeprefix("ALL_")
    return None if short in ("F32", "F16", "BF16", "GUESSED") else short


# --- one file ------------------------------------------------------------------------------------


def _read_part(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    size = path.stat().st_size
    if size < 24:
        raise BadGguf(f"{path.name} is not a GGUF file")
    with path.open("rb") as stream:
        length = min(size, MAX_HEADER_BYTES)
        with mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ) as blob:
            try:
                return _Reader(path, blob, size).read()
            except (struct.error, UnicodeDecodeError, OverflowError, MemoryError) as error:
                raise BadGguf(f"{path.name} is damaged or cut short") from error


class _Reader:
    """A position that moves through a header."""

    def __init__(self, path: Path, blob: mmap.mmap, file_bytes: int) -> None:
        self._path = path
        self._blob = blob
        self._file_bytes = file_bytes
        self._position = len(MAGIC)

    def read(self) -> tuple[dict[str, Any], list[GgufTensor]]:
        if self._blob[: len(MAGIC)] != MAGIC:
            raise BadGguf(f"{self._path.name} is not a GGUF file")
        (version,) = self._unpack("I")
        if version not in VERSIONS:
            raise BadGguf(f"{self._path.name} is of GGUF version {version}, not 2 or 3")
        num_tensors, num_entries = self._unpack("QQ")
        metadata = dict(self._entry() for _ in range(self._checked(num_entries, 13)))
        rows = [self._row() for _ in range(self._checked(num_tensors, 24))]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged("its alignment is nonsense")
        data_start = -(-self._position // alignment) * alignment
        tensors = [self._tensor(row, data_start, alignment) for row in rows]
        self._check_apart(tensors)
        return metadata, tensors

    def _entry(self) -> tuple[str, Any]:
        key = self._string()
        (kind,) = self._unpack("I")
        return key, self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        raise self._damaged(f"metadata of type {kind}")

    def _array(self) -> list[Any]:
        kind, count = self._unpack("IQ")
        if kind == _STRING:
            return [self._string() for _ in range(self._checked(count, 8))]
        if kind not in _SCALARS:
            raise self._damaged(f"an array of type {kind}")
        letter = _SCALARS[kind]
        self._checked(count, struct.calcsize(letter))
        return list(self._unpack(f"{count}{letter}"))

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        self._checked(length, 1)
        start, self._position = self._position, self._position + length
        return self._blob[start : self._position].decode()

    def _unpack(self, letters: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{letters}", self._blob, self._position)
        self._position += struct.calcsize(f"<{letters}")
        return values

    def _checked(self, count: int, least_bytes: int) -> int:
        """Return an announced count if so many things, so long at the least, can follow."""
        if count * least_bytes > len(self._blob) - self._position:
            raise self._damaged("it announces more than it holds")
        return count

    def _row(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return a row of the tensor table: name, shape, type, offset within the data."""
        name = self._string()
        (num_dimensions,) = self._unpack("I")
        if not 0 < num_dimensions <= MAX_DIMENSIONS:
            raise self._damaged(f"{name} has {num_dimensions} dimensions")
        dimensions = self._unpack(f"{num_dimensions}Q")
        if 0 in dimensions:
            raise self._damaged(f"{name} is empty")
        type_id, offset = self._unpack("IQ")
        return name, tuple(reversed(dimensions)), type_id, offset

    def _tensor(
        self, row: tuple[str, tuple[int, ...], int, int], data_start: int, alignment: int
    ) -> GgufTensor:
        name, shape, type_id, offset = row
        num_bytes = _num_bytes(name, shape, type_id)
        start = data_start + offset
        if offset % alignment or start + num_bytes > self._file_bytes:
            raise self._damaged(f"{name} does not lie within it")
        return GgufTensor(name, shape, type_id, self._path, start, num_bytes)

    def _check_apart(self, tensors: list[GgufTensor]) -> None:
        for one, other in pairwise(sorted(tensors, key=lambda tensor: tensor.start)):
            if one.start + one.num_bytes > other.start:
                raise self._damaged(f"{one.name} and {other.name} overlap")

    def _damaged(self, why: str) -> BadGguf:
        return BadGguf(f"{self._path.name} is damaged or cut short: {why}")


def _num_bytes(name: str, shape: tuple[int, ...], type_id: int) -> int:
    sizes = block_sizes()
    if type_id not in sizes:
        raise BadGguf(f"{name} is of the unknown type {type_id}")
    block_elements, block_bytes = sizes[type_id]
    if shape[-1] % block_elements:
        raise BadGguf(f"the rows of {name} are no whole blocks")
    return prod(shape) // block_elements * block_bytes


@cache
def block_sizes() -> dict[int, tuple[int, int]]:
    """Return each tensor type's block: how many elements in how many bytes."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
