"""What the gateway adds to a stream, beside a bare relay over the same stub neuron in one run.

    python bench/gateway.py [--rounds N] [--seconds S] [--streams 64,256]

The processes: a stub neuron (`stub_neuron.py`), a bare relay (`bare_relay.py`: bytes pumped and
nothing parsed, the floor), and Cortex's gateway as it is served (`manage.py serve --role gateway`:
real settings, a data folder of its own, SQLite, records and metrics on) with one ready placement on
the stub. One process each, all on this machine. The load generator is this process. Settings of the
caller's environment do not reach them.

The numbers, each for `relay` and `gateway`, measured in turns, each round in the other order, after
a warm-up that is not counted:

- `added_ttft_us_p50`, `_p99`: one stream at a time, a new request when the last one has ended. Time
  from the request's first byte to the first token's chunk, minus the median of the same straight
  from the stub in the same round; median and 99th percentile of all rounds' requests.
- `cpu_us_per_request`: 16 connections, 1 token each: CPU time (user + system) of the relaying
  process over the run, by its requests.
- `cpu_us_per_chunk`: for each number of streams at once, 20 tokens a second each: CPU time of the
  relaying process over the run, by the chunks with a token. Beginning and end of the streams are in
  it, as they are in life.

CPU time is read from /proc in ticks of 10 ms, some time after the last answer: what a process does
afterwards, such as writing records, belongs to the requests it does it for. The last line is one
JSON object; the lines before it are the same after each round.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvloop
from clients import Measured, run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
INTERVAL_MS = 50
TTFT_REQUESTS = 200
CPU_CONNECTIONS = 16
CPU_REQUESTS = 100
SIDES = ("relay", "gateway")
SETTLE_SECONDS = 2.0
START_SECONDS = 60.0
OF_CALLER = ("CORTEX_", "DATABASE", "REDIS", "PROMETHEUS_MULTIPROC_DIR", "DJANGO_SETTINGS_MODULE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a stream")
    parser.add_argument("--streams", default="64,256", help="numbers of streams at once")
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    with (
        tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder,
        running_processes(Path(folder)) as (ports, pids),
    ):
        result = uvloop.run(measure(ports, pids, options.rounds, options.seconds, counts))
    print(json.dumps(result))


# --- processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def running_processes(folder: Path) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Start stub, relay and gateway; yields their ports and process ids."""
    ports = {name: free_port() for name in ("stub", "relay", "gateway")}
    environment = without_settings(os.environ)
    os.environ.clear()
    os.environ.update(environment, CORTEX_DATA=str(folder), CORTEX_LOG_LEVEL="ERROR")
    prepare_rows(f"http://127.0.0.1:{ports['stub']}")
    port = str(ports["gateway"])
    commands = {
        "stub": [str(HERE / "stub_neuron.py"), str(ports["stub"])],
        "relay": [str(HERE / "bare_relay.py"), str(ports["relay"]), str(ports["stub"])],
        "gateway": [str(ROOT / "manage.py"), "serve", "--role", "gateway", "--port", port],
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, command in commands.items():
            processes[name] = subprocess.Popen([sys.executable, *command], cwd=ROOT)
        for name in ("stub", "relay"):
            wait_for(processes[name], lambda name=name: is_open(ports[name]))
        wait_for(processes["gateway"], lambda: is_healthy(ports["gateway"]))
        yield ports, {name: process.pid for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(30)


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Cortex runs by its defaults, on a data folder alone."""
    return {name: value for name, value in environment.items() if not name.startswith(OF_CALLER)}


def prepare_rows(endpoint: str) -> None:
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(process: "subprocess.Popen[bytes]", condition: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args} did not start")
        time.sleep(0.05)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


# --- measuring -----------------------------------------------------------------------------------


async def measure(
    ports: dict[str, int], pids: dict[str, int], rounds: int, seconds: float, counts: list[int]
) -> dict[str, Any]:
    for name in ("stub", "relay", "gateway"):
        checked(await run(ports[name], 8, 50, 2, 0))
    added: dict[str, list[float]] = {name: [] for name in SIDES}
    per_request: dict[str, list[float]] = {name: [] for name in SIDES}
    per_chunk: dict[int, dict[str, list[float]]] = {
        count: {name: [] for name in SIDES} for count in counts
    }
    for number in range(1, rounds + 1):
        straight = await ttft_us(ports["stub"])
        for name in in_turn(number):
            added[name] += [us - statistics.median(straight) for us in await ttft_us(ports[name])]
            per_request[name].append(await request_cost(ports[name], pids[name]))
            for count in counts:
                cost = await chunk_cost(ports[name], pids[name], count, seconds)
                per_chunk[count][name].append(cost)
        print(f"after round {number}: {describe(added, per_request, per_chunk)}", flush=True)
    return {
        "added_ttft_us_p50": {n: round(statistics.median(v), 1) for n, v in added.items()},
        "added_ttft_us_p99": {n: round(percentile(v, 0.99), 1) for n, v in added.items()},
        "cpu_us_per_request": medians(per_request),
        "cpu_us_per_chunk": {str(count): medians(costs) for count, costs in per_chunk.items()},
        "rounds": rounds,
        "seconds": seconds,
        "tokens_per_second": 1000 // INTERVAL_MS,
    }


def in_turn(number: int) -> tuple[str, ...]:
    """Return the sides in the order of a round: who comes second meets a warmer machine."""
    return SIDES if number % 2 else SIDES[::-1]


async def ttft_us(port: int) -> list[float]:
    measured = checked(await run(port, 1, TTFT_REQUESTS, 2, 0))
    return [ns / 1000 for ns in measured.ttft_ns]


async def request_cost(port: int, pid: int) -> float:
    before = cpu_seconds(pid)
    measured = checked(await run(port, CPU_CONNECTIONS, CPU_REQUESTS, 1, 0))
    await asyncio.sleep(SETTLE_SECONDS)
    return (cpu_seconds(pid) - before) * 1e6 / measured.num_requests


async def chunk_cost(port: int, pid: int, num_streams: int, seconds: float) -> float:
    num_tokens = max(1, round(seconds * 1000 / INTERVAL_MS))
    before = cpu_seconds(pid)
    measured = checked(await run(port, num_streams, 1, num_tokens, INTERVAL_MS))
    await asyncio.sleep(SETTLE_SECONDS)
    return (cpu_seconds(pid) - before) * 1e6 / measured.num_chunks


def checked(measured: Measured) -> Measured:
    if measured.num_errors:
        raise SystemExit(f"{measured.num_errors} requests failed: the numbers mean nothing")
    return measured


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.median(each), 1) for name, each in values.items()}


def describe(
    added: dict[str, list[float]],
    per_request: dict[str, list[float]],
    per_chunk: dict[int, dict[str, list[float]]],
) -> str:
    chunks = "; ".join(f"{count} streams {medians(costs)}" for count, costs in per_chunk.items())
    return (
        f"added TTFT {medians(added)} us, CPU per request {medians(per_request)} us, "
        f"per chunk {chunks} us"
    )


if __name__ == "__main__":
    main()
