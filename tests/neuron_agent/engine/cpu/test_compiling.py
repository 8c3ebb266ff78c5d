"""Kernels are compiled once for a machine, and a machine without a compiler gets along."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_agent.engine.cpu import compiling
from neuron_agent.engine.cpu.compiling import CompilationFailed, compiled
from tests.neuron_agent.engine.cpu.conditions import needs_kernels


def compiler(folder: Path, name: str, script: str) -> None:
    """Put a compiler of our own making on the path, before the real ones."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the first on the path, with no compiler but what a test puts there."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/nowhere")
    return folder


@needs_kernels
def test_a_library_is_compiled_once_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = compiled(tmp_path / "new")
    before = path.stat().st_mtime_ns
    assert compiled(tmp_path / "new") == path
    assert path.stat().st_mtime_ns == before
    assert list((tmp_path / "new").iterdir()) == [path]


@needs_kernels
@pytest.mark.parametrize("change", ["source", "flags", "processor"])
def test_what_it_depends_on_is_in_its_name(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiling._fingerprint()
    if change == "source":
        sources = tmp_path / "sources"
        shutil.copytree(compiling.SOURCES, sources)
        (sources / "steps.h").write_text((sources / "steps.h").read_text() + "// more\n")
        monkeypatch.setattr(compiling, "SOURCES", sources)
    elif change == "flags":
        monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-O1"))
    else:
        monkeypatch.setattr(compiling, "_processor", lambda: "another one")
    assert compiling._fingerprint() != first


@needs_kernels
@pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
def test_a_damaged_library_is_compiled_again(damage: str, tmp_path: Path) -> None:
    path = compiled(tmp_path)
    whole = path.read_bytes()
    half = whole[: len(whole) // 2]
    path.write_bytes({"empty": b"", "half": half, "zeros": half + bytes(len(half))}[damage])
    again = compiled(tmp_path)
    assert compiling._failure_of([sys.executable, "-c", compiling.TRIAL, str(again)], 30) is None
    assert list(tmp_path.iterdir()) == [again]


@needs_kernels
def test_a_library_that_does_not_run_here_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that says it has instructions which it has not."""
    sources = tmp_path / "sources"
    shutil.copytree(compiling.SOURCES, sources)
    text = (sources / "kernels.cpp").read_text()
    (sources / "kernels.cpp").write_text(
        text.replace("int cortex_try() {", "int cortex_try() { __builtin_trap();")
    )
    monkeypatch.setattr(compiling, "SOURCES", sources)
    with pytest.raises(CompilationFailed, match="ended with -"):
        compiled(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_kernels
@pytest.mark.parametrize("home", ["file", "none", "relative"])
def test_where_nothing_can_be_kept_the_library_lives_in_memory(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if home == "file":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        if home == "relative":
            monkeypatch.setenv("XDG_CACHE_HOME", "here")
        monkeypatch.setattr(Path, "home", nobody)
    library = compiling.kernels.__wrapped__()
    assert library is not None
    assert library.cortex_try() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@needs_kernels
def test_a_broken_compiler_does_not_hide_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path / "tools", "g++", "echo cannot do that >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    if shutil.which("c++") is None:
        pytest.skip("g++ is the only compiler")
    assert compiled(tmp_path / "cache").exists()


def test_without_a_compiler_there_are_no_kernels(tools: Path, tmp_path: Path) -> None:
    with pytest.raises(CompilationFailed, match="g\\+\\+"):
        compiled(tmp_path / "cache")
    assert compiling.kernels.__wrapped__() is None


def test_what_the_compiler_says_is_told_and_nothing_is_left(tools: Path, tmp_path: Path) -> None:
    compiler(tools, "g++", "echo cannot do that >&2; exit 1")
    with pytest.raises(CompilationFailed, match="cannot do that"):
        compiled(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tools, "g++", "exec /bin/sleep 60")
    monkeypatch.setattr(compiling, "COMPILE_SECONDS", 0.1)
    with pytest.raises(CompilationFailed, match="timed out"):
        compiled(tmp_path / "cache")


@needs_kernels
def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    old, new = tmp_path / "building-old", tmp_path / "building-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "kernels.so").write_text("half of it")
    os.utime(old, (0, 0))
    path = compiled(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, path])


@needs_kernels
def test_several_processes_may_start_at_once(tmp_path: Path) -> None:
    program = "from neuron_agent.engine.cpu.compiling import kernels; assert kernels() is not None"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]


def test_it_is_kept_with_the_users_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert compiling.cache_folder() == Path("/elsewhere/cortex-neuron")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert compiling.cache_folder() == Path("/home/somebody/.cache/cortex-neuron")
