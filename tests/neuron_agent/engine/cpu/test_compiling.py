"""Kernels are compiled once for a machine, and a machine without a compiler gets along."""

import ctypes
import os
import shutil
from pathlib import Path

import pytest

from neuron_agent.engine.cpu import compiling
from neuron_agent.engine.cpu.compiling import CompilationFailed, compiled
from tests.neuron_agent.engine.cpu.conditions import needs_kernels


@needs_kernels
def test_a_library_is_compiled_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = compiled(tmp_path / "new")
    assert ctypes.CDLL(str(path)).cortex_has_products() in (0, 1)
    before = path.stat().st_mtime_ns
    assert compiled(tmp_path / "new") == path
    assert path.stat().st_mtime_ns == before
    assert list((tmp_path / "new").iterdir()) == [path]


@needs_kernels
@pytest.mark.parametrize("change", ["source", "flags", "processor"])
def test_what_it_depends_on_is_in_its_name(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiled(tmp_path)
    if change == "source":
        sources = tmp_path / "sources"
        shutil.copytree(compiling.SOURCES, sources)
        (sources / "steps.h").write_text((sources / "steps.h").read_text() + "// more\n")
        monkeypatch.setattr(compiling, "SOURCES", sources)
    elif change == "flags":
        monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-O1"))
    else:
        monkeypatch.setattr(compiling, "_processor", lambda: "another one")
    assert compiled(tmp_path) != first


@needs_kernels
def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    path = compiled(in_the_way)
    assert path.exists()
    path.unlink()
    path.parent.rmdir()


def test_without_a_compiler_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompilationFailed, match="g\\+\\+"):
        compiled(tmp_path)
    assert compiling.kernels.__wrapped__() is None


def test_what_the_compiler_says_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "g++"
    script.write_text("#!/bin/sh\necho cannot do that >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/bin")
    with pytest.raises(CompilationFailed, match="cannot do that"):
        compiled(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "g++"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 0.1)
    with pytest.raises(CompilationFailed, match="timed out"):
        compiled(tmp_path / "cache")


def test_it_is_kept_with_the_users_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert compiling.cache_folder() == Path("/elsewhere/cortex-neuron")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert compiling.cache_folder() == Path("/home/somebody/.cache/cortex-neuron")
