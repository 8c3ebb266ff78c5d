"""The servers that benchmarks start: of one thread, on one core, with their CPU time.

What is asked of a server is not its business. Settings of the caller's environment that begin with
NEURON_ do not reach it.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 180.0
STOP_SECONDS = 30.0
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


class ServerFailed(Exception):
    """A server did not start, or refused what the benchmark needs of it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its process, and its port (0 = it has none)."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def cpu_seconds(self) -> float:
        """Return the user and system time so far of the process and all it has started."""
        parent = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return sum(each.user + each.system for each in times)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the JSON of the answer. Raises ServerFailed on any status but 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        if answer.status != 200:
            raise ServerFailed(f"{path}: {answer.status} {data[:500]!r}")
        return json.loads(data)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    *,
    port: int = 0,
    core: int | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Start a server, on one core if one is named, and end it with all it has started."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    inherited = {name: v for name, v in os.environ.items() if not name.startswith("NEURON_")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | ONE_THREAD | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            preexec_fn=pin,
        )
    try:
        yield Server(process, port, log)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def running_neuron(
    log: Path, *, core: int | None = None, memory_mb: int = 4000
) -> Iterator[Server]:
    """Start a neuron with one CPU device of one thread."""
    environment = {
        "NEURON_PORT": "0",
        "NEURON_DEVICES__CPU": "1",
        "NEURON_DEVICES__CUDA": "false",
        "NEURON_DEVICES__THREADS": "1",
        "NEURON_DEVICES__CPU_MEMORY_MB": str(memory_mb),
        "NEURON_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "neuron_agent"]
    with running(command, log, core=core, environment=environment) as started:
        assert started.process.stdout is not None
        line = started.process.stdout.readline().decode()
        if "listening on" not in line:
            raise ServerFailed(f"the neuron did not start: {tail(log)}")
        yield Server(started.process, int(line.rsplit(":", 1)[1]), log)


def wait_until_healthy(server: Server) -> None:
    """Wait for 200 from /health. Raises ServerFailed if it never comes."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        if _is_healthy(server.port):
            return
        time.sleep(0.1)
    raise ServerFailed(f"{server.process.args} did not start: {tail(server.log)}")


def _is_healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else ""
