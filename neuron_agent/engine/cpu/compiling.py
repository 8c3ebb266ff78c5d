"""Compiles the kernels for this very processor, once, and keeps what came of it.

A host has a C++ compiler or not: without one the engine works on, slower, on torch's own kernels.
It knows nothing of what the kernels do.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import structlog

SOURCES = Path(__file__).parent / "kernels"
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
COMPILE_SECONDS = 120

log = structlog.get_logger(__name__)


class CompilationFailed(Exception):
    """There is no compiler, or it does not take the sources."""


@cache
def kernels() -> ctypes.CDLL | None:
    """Return the kernels, compiled now if they never were; None where they cannot be."""
    try:
        path = compiled(cache_folder())
        return ctypes.CDLL(str(path))
    except (CompilationFailed, OSError) as error:
        log.warning("kernels_missing", reason=str(error), hint="install g++ for more speed")
        return None


def cache_folder() -> Path:
    """Where compiled kernels are kept: with the user's other caches."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "cortex-neuron"


def compiled(folder: Path) -> Path:
    """Return the library for these sources, this compiler and this processor.

    Several processes may start at once: each compiles for itself, and the last one's stays. Where
    `folder` cannot be written, the library lives in a temporary folder of this process.
    Raises CompilationFailed.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CompilationFailed(f"none of {', '.join(COMPILERS)} is installed")
    target = folder / f"kernels-{_fingerprint(compiler)}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(dir=folder))
    except OSError:
        workshop = Path(tempfile.mkdtemp(prefix="cortex-neuron-"))
        target = workshop / target.name
    built = workshop / "building.so"
    try:
        _compile(compiler, built)
        built.replace(target)
    finally:
        built.unlink(missing_ok=True)
        if target.parent != workshop:
            workshop.rmdir()
    return target


def _compile(compiler: str, target: Path) -> None:
    command = [compiler, *FLAGS, str(SOURCES / "kernels.cpp"), "-o", str(target)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilationFailed(str(error)) from error
    if done.returncode:
        raise CompilationFailed(f"{compiler}: {done.stderr.strip()[:500]}")


def _fingerprint(compiler: str) -> str:
    """Name what the library depends on: code for another processor would crash this one."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.is_file():
            digest.update(source.read_bytes())
    about = Path(os.path.realpath(compiler)).stat()
    for fact in (FLAGS, compiler, about.st_size, about.st_mtime_ns, _processor()):
        digest.update(repr(fact).encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Return what tells processors apart: model and instructions where the system lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
