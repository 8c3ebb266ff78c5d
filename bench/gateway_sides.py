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
from functools import partial
from pathlib import Path

import gateway_litellm
from clients import CHAT, MESSAGES, Asking

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
START_SECONDS = 120.0
STOP_SECONDS = 10.0
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

        def start(name: str, command: Callable[[int], list[str]], health: str = "") -> Process:
            return stack.enter_context(_server(name, command, health, folder))

        stub = start("stub", lambda port: _script("stub_neuron.py", port))
        endpoint = f"http://127.0.0.1:{stub.port}"
        relay = start("relay", lambda port: _script("bare_relay.py", port, stub.port))
        _prepare_rows(endpoint)
        cortex = start("cortex", _serve, "/health")
        compared = [
            Side("relay", relay, CHAT),
            Side("cortex_chat", cortex, CHAT),
            Side("cortex_messages", cortex, MESSAGES),
        ]
        if litellm is not None:
            os.environ.update(gateway_litellm.ENVIRONMENT)
            command = partial(gateway_litellm.command, litellm, endpoint, folder)
            process = start("litellm", command, gateway_litellm.HEALTH_PATH)
            compared.append(Side("litellm_chat", process, CHAT))
            compared.append(Side("litellm_messages", process, MESSAGES))
        yield Sides(Side("stub", stub, CHAT), tuple(compared))


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which each side runs by its defaults, on a data folder alone."""
    return {name: value for name, value in environment.items() if not name.startswith(OF_CALLER)}


def _script(name: str, *arguments: int) -> list[str]:
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def _serve(port: int) -> list[str]:
    manage = [sys.executable, str(ROOT / "manage.py")]
    return [*manage, "serve", "--role", "gateway", "--port", str(port)]


def _prepare_rows(endpoint: str) -> None:
    """Make a database in which the stub is a healthy neuron with a ready placement."""
    sys.path.insert(0, str(ROOT))
    os.environ["DJANGO_SETTINGS_MODULE"] = "cortex_site.settings"
    import django
    from django.core.management import call_command
    from django.utils import timezone

    django.setup()
    call_command("migrate", verbosity=0)
    from fleet.models import ModelProfile, Neuron, Placement
    from fleet.planner.phases import NeuronPhase, PlacementPhase

    now = timezone.now()
    neuron = Neuron.objects.create(name="stub", endpoint=endpoint, phase=NeuronPhase.HEALTHY)
    profile = ModelProfile.objects.create(model_id="stub")
    Placement.objects.create(
        profile=profile,
        neuron=neuron,
        device_indexes=[0],
        phase=PlacementPhase.READY,
        phase_since=now,
        requested_at=now,
        ready_at=now,
    )


@contextlib.contextmanager
def _server(
    name: str, command: Callable[[int], list[str]], health: str, folder: Path
) -> Iterator[Process]:
    """Start a server and wait until it answers, or takes connections if it has no health path."""
    port = _free_port()
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command(port), cwd=ROOT, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (_is_healthy(port, health) if health else _is_open(port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Process(port, process.pid)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """LiteLLM's proxy waits for what its clients left undone, and longer than we do."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_healthy(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
