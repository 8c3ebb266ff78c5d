"""Compiles the kernels for this very processor, once, and keeps what came of it.

A host has a C++ compiler or not: without one the engine works on, slower, on torch's own kernels.
It knows nothing of what the kernels do.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import structlog

SOURCES = Path(__file__).parent / "kernels"
COMPILERS = ("g++", "c++", "clang++")
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-strict-aliasing"),
    *("-shared", "-fPIC"),
)
COMPILE_SECONDS = 120
TRIAL_SECONDS = 30
TRIAL = "import ctypes, sys; sys.exit(ctypes.CDLL(sys.argv[1]).cortex_try())"

log = structlog.get_logger(__name__)


class CompilationFailed(Exception):
    """There is no compiler, or none that gives a library which works here."""


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the kernels, compiled now if they never were; None where they cannot be."""
    try:
        return _loaded()
    except (CompilationFailed, OSError) as error:
        log.warning("kernels_missing", reason=str(error), effect="slower, on torch's own kernels")
        return None


def _loaded() -> ctypes.CDLL:
    folder = cache_folder()
    if folder is not None:
        with contextlib.suppress(OSError):  # it cannot be written, or there is no room
            return ctypes.CDLL(str(compiled(folder)))
    with tempfile.TemporaryDirectory(prefix="cortex-neuron-") as passing:
        return ctypes.CDLL(str(compiled(Path(passing))))  # once loaded, the file is not needed


def cache_folder() -> Path | None:
    """Where compiled kernels are kept: with the user's other caches; None for nobody's."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        try:
            root = Path.home() / ".cache"
        except RuntimeError:
            return None
    return root / "cortex-neuron"


def compiled(folder: Path) -> Path:
    """Return the library for these sources, these compilers and this processor.

    Its name says what it was made from, and what is in it: a damaged one would kill the process
    that loads it. Several processes may start at once: each compiles for itself.
    Raises CompilationFailed, and OSError where `folder` cannot be written.
    """
    name = f"kernels-{_fingerprint()}"
    for kept in folder.glob(f"{name}-*.so"):
        if kept.stem == f"{name}-{_digest(kept)}":
            return kept
        kept.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as workshop:
        built = Path(workshop) / "kernels.so"
        _compile(built)
        with built.open("rb") as file:
            os.fsync(file.fileno())
        target = folder / f"{name}-{_digest(built)}.so"
        built.replace(target)
    return target


def _compile(target: Path) -> None:
    """Let one compiler after the other try. What it makes is tried in a process of its own."""
    installed = [path for path in map(shutil.which, COMPILERS) if path is not None]
    failures = []
    for compiler in installed:
        command = [compiler, *FLAGS, str(SOURCES / "kernels.cpp"), "-o", str(target)]
        failure = _failure_of(command, COMPILE_SECONDS)
        failure = failure or _failure_of([sys.executable, "-c", TRIAL, str(target)], TRIAL_SECONDS)
        if failure is None:
            return
        failures.append(f"{compiler}: {failure}")
    raise CompilationFailed("; ".join(failures) or "no C++ compiler is installed (g++)")


def _failure_of(command: list[str], seconds: float) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    return done.stderr.strip()[:500] or f"it ended with {done.returncode}"


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed while they compiled."""
    for left in folder.glob("building-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > COMPILE_SECONDS + TRIAL_SECONDS:
                shutil.rmtree(left)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _fingerprint() -> str:
    """Name what the library depends on: code for another processor would crash this one."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.is_file():
            digest.update(source.read_bytes())
    for fact in (FLAGS, _processor(), *_compilers()):
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:16]


def _compilers() -> list[tuple[str, int, int]]:
    """Return what tells versions apart: where each is, its size and its time."""
    found = [os.path.realpath(path) for path in map(shutil.which, COMPILERS) if path is not None]
    files = [(path, Path(path).stat()) for path in found]
    return [(path, about.st_size, about.st_mtime_ns) for path, about in files]


def _processor() -> str:
    """Return what tells processors apart: model and instructions where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
