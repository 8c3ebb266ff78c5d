"""What is believed of a GGUF header, and what is not."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.sources.gguf_file import BadGguf, GgufFile, part_names, quant_name, read_gguf

F32, Q8_0 = 0, 8
STRING, ARRAY, U32 = 8, 9, 4


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ARCHITECTURE = entry("general.architecture", STRING, text("llama"))
WORDS = entry("words", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + text("ö"))
NUMBERS = entry("numbers", ARRAY, struct.pack("<IQ3I", U32, 3, 1, 2, 3))


def row(name: str, dimensions: tuple[int, ...], kind: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf(
    *rows: bytes,
    entries: tuple[bytes, ...] = (ARCHITECTURE, WORDS, NUMBERS),
    data: bytes = b"",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    num_tensors, num_entries = counts or (len(rows), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_entries)
    content = head + b"".join(entries) + b"".join(rows)
    return content + b"\0" * (-len(content) % 32) + data


WHOLE = gguf(row("a", (2, 3), F32, 0), row("b", (32,), Q8_0, 32), data=b"\0" * (32 + 34))


def read(folder: Path, content: bytes) -> GgufFile:
    (folder / "m.gguf").write_bytes(content)
    return read_gguf(folder / "m.gguf")


def refusal_of(folder: Path, content: bytes) -> str:
    with pytest.raises(BadGguf) as caught:
        read(folder, content)
    assert str(folder) not in str(caught.value), "no path of the host goes to a client"
    return str(caught.value)


def test_header_is_read(tmp_path: Path) -> None:
    file = read(tmp_path, WHOLE)
    assert file.architecture == "llama"
    assert file.metadata["words"] == ["a", "ö"]
    assert file.metadata["numbers"] == [1, 2, 3]
    a, b = file.tensors["a"], file.tensors["b"]
    assert (a.shape, a.num_bytes, a.num_elements) == ((3, 2), 24, 6), "torch's order of dimensions"
    assert (b.num_bytes, b.start - a.start) == (34, 32)
    assert b.start + b.num_bytes == len(WHOLE)


@given(st.integers(0, len(WHOLE) - 1))
def test_file_cut_short_anywhere_is_refused(tmp_path_factory: Any, length: int) -> None:
    refusal_of(tmp_path_factory.mktemp("cut"), WHOLE[:length])


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 255))
def test_no_byte_leads_to_another_error(tmp_path_factory: Any, place: int, value: int) -> None:
    folder = tmp_path_factory.mktemp("spoilt")
    try:
        file = read(folder, WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :])
    except BadGguf:
        return
    assert all(t.start + t.num_bytes <= len(WHOLE) for t in file.tensors.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{" + WHOLE[1:],
        gguf(version=1),
        gguf(entries=()),
        gguf(counts=(2**63, 1)),
        gguf(counts=(0, 2**63)),
        gguf(entries=(entry("general.architecture", STRING, struct.pack("<Q", 2**62)),)),
        gguf(entries=(ARCHITECTURE, entry("a", ARRAY, struct.pack("<IQ", STRING, 2**60)))),
        gguf(entries=(ARCHITECTURE, entry("a", ARRAY, struct.pack("<IQ", U32, 2**60)))),
        gguf(entries=(ARCHITECTURE, entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1)))),
        gguf(entries=(ARCHITECTURE, entry("a", 99, b""))),
        gguf(entries=(ARCHITECTURE, entry("general.alignment", U32, struct.pack("<I", 0)))),
    ],
)
def test_header_that_makes_no_sense_is_refused(tmp_path: Path, content: bytes) -> None:
    refusal_of(tmp_path, content)


@pytest.mark.parametrize(
    "rows",
    [
        [row("a", (8,), F32, 2**63)],
        [row("a", (2**40, 2**20), F32, 0)],
        [row("a", (8,), F32, 4)],
        [row("a", (0, 8), F32, 0)],
        [row("a", (1,) * 5, F32, 0)],
        [row("a", (), F32, 0)],
        [row("a", (8,), 77, 0)],
        [row("a", (8,), Q8_0, 0)],
        [row("a", (16,), F32, 0), row("b", (8,), F32, 32)],
        [row("a", (8,), F32, 0), row("a", (8,), F32, 32)],
    ],
)
def test_tensor_that_cannot_lie_where_it_says_is_refused(tmp_path: Path, rows: list[bytes]) -> None:
    refusal_of(tmp_path, gguf(*rows, data=b"\0" * 64))


def test_parts_are_one_model(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in part_names("m-00001-of-00002.gguf"))
    first.write_bytes(gguf(row("a", (8,), F32, 0), data=b"\0" * 32))
    second.write_bytes(gguf(row("b", (8,), F32, 0), data=b"\0" * 32, entries=(WORDS,)))
    tensors = read_gguf(first).tensors
    assert [tensor.file for tensor in tensors.values()] == [first, second]
    second.unlink()
    with pytest.raises(BadGguf, match="00002"):
        read_gguf(first)


@pytest.mark.parametrize(
    ("file_type", "name"),
    [(0, None), (1, None), (32, None), (7, "Q8_0"), (15, "Q4_K_M"), (-5, None)],
)
def test_quantisation_has_its_usual_name(file_type: int, name: str | None) -> None:
    assert quant_name({"general.file_type": file_type}) == name
