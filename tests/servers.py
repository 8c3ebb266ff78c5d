"""Real PostgreSQL and Redis servers for tests: found on this machine, started on free ports.

Each is a context manager that yields a URL and leaves nothing behind.
"""

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

START_SECONDS = 30.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_redis() -> str | None:
    return shutil.which("redis-server") or shutil.which("valkey-server")


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs: on Debian they are not on the PATH."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    return Path(folders[-1]) if folders else None


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """A Redis on a port of its own; yields its URL."""
    program = find_redis()
    assert program is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="cortex-redis-") as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        process = subprocess.Popen([*command, "--save", "", "--loglevel", "warning"])
        try:
            _wait_for_port(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            _end(process)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL with an empty database `cortex`; yields its URL."""
    programs = find_postgres()
    assert programs is not None
    user = _postgres_user()
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="cortex-postgres-"))
    if user is not None:
        shutil.chown(folder, user)
    try:
        initdb = [programs / "initdb", "-D", folder / "data", "-U", "cortex", "-A", "trust"]
        subprocess.run(
            [*initdb, "--no-sync"], check=True, user=user, cwd="/", stdout=subprocess.DEVNULL
        )
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        process = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *options],
            user=user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for_port(port, process)
            _create_database(programs, port)
            yield f"postgres://cortex@127.0.0.1:{port}/cortex"
        finally:
            _end(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _postgres_user() -> str | None:
    """PostgreSQL refuses to run as root: the user to run it as, None if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("no user to run PostgreSQL as")


def _create_database(programs: Path, port: int) -> None:
    command = [programs / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "cortex", "cortex"]
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(command, check=False, stderr=subprocess.DEVNULL, cwd="/").returncode:
        assert time.monotonic() < deadline, "PostgreSQL does not take connections"
        time.sleep(0.1)


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, f"the server ended with {process.returncode}"
        assert time.monotonic() < deadline, "the server does not listen"
        time.sleep(0.05)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
