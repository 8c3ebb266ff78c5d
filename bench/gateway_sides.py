"""What `gateway.py` compares: the processes, each on a port of its own, before one stub neuron.

It starts and ends them and says what they have used. What they are asked is not its business, but
for the words of each. Settings of the caller's environment do not reach them.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gateway_litellm
from clients import CHAT, MESSAGES, Asking

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
START_SECONDS = 120.0
STOP_SECONDS = 30.0
OF_CALLER = (
    "CORTEX_",
    "DATABASE",
    "REDIS",
    "LITELLM",
    "PROMETHEUS_MULTIPROC_DIR",
    "DJANGO_SETTINGS_MODULE",
)


@dataclass(frozen=True, slots=True)
class Process:
    """A running server."""

    port: int
    pid: int

    def cpu_ns(self) -> int:
        """Return the CPU time, user and system, of all its threads so far.

        Of the clock that Linux keeps for each process: /proc counts in ticks of 10 ms.
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2)

    def resident_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
        raise RuntimeError(f"process {self.pid} has ended")


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that are compared: a process, and how it is asked."""

    name: str
    process: Process
    asking: Asking


@dataclass(frozen=True, slots=True)
class Sides:
    stub: Side
    """Asked directly: what the others add is measured against it."""
    compared: tuple[Side, ...]


@contextlib.contextmanager
def running(folder: Path, litellm: Path | None) -> Iterator[Sides]:
    """Start all; `litellm` is the folder of its programs, None if it is not to be compared."""
    environment = without_settings(os.environ)
    os.environ.clear()
    os.environ.update(environment, CORTEX_DATA=str(folder), CORTEX_LOG_LEVEL="ERROR")
    with contextlib.ExitStack() as stack:
        port = _free_port()
        stub = stack.enter_context(_running([sys.executable, _script("stub_neuron.py"), port]))
        at_stub = f"http://127.0.0.1:{stub.port}"
        relay_script = [sys.executable, _script("bare_relay.py"), _free_port(), str(stub.port)]
        relay = stack.enter_context(_running(relay_script, port_at=2))
        _prepare_rows(at_stub)
        serve = [sys.executable, str(ROOT / "manage.py"), "serve", "--role", "gateway", "--port"]
        cortex = stack.enter_context(_running([*serve, _free_port()], health="/health"))
        compared = [
            Side("relay", relay, CHAT),
            Side("cortex_chat", cortex, CHAT),
            Side("cortex_messages", cortex, MESSAGES),
        ]
        if litellm is not None:
            compared.append(Side("litellm", stack.enter_context(_litellm(litellm, at_stub)), CHAT))
        yield Sides(Side("stub", stub, CHAT), tuple(compared))
