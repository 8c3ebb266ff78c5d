"""Nothing of the caller's settings reaches a side; what a side uses is read right."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import gateway_sides
import pytest
from gateway_sides import Process

MEASURE = """
import asyncio, json, sys
from pathlib import Path
import gateway, gateway_sides

async def measure(sides):
    results = gateway.Results()
    await gateway.measure_streams(sides, 1, 2, 0.2, results)
    for side in sides.compared:
        results.per_request[side.name].append(await gateway.request_cost(side))
    return results.summary()

gateway.SETTLE_SECONDS = 0.0
with gateway_sides.running(Path(sys.argv[1]), None) as sides:
    print(json.dumps(asyncio.run(measure(sides))))
"""


def test_no_setting_of_the_caller_reaches_what_is_measured() -> None:
    kept = {"PATH": "/bin", "HOME": "/root"}
    settings = {
        "CORTEX_DATABASE_URL": "postgres://production",
        "CORTEX_REDIS_URL": "redis://production",
        "CORTEX_LOAD_WAIT_SECONDS": "1",
        "DATABASE_URL": "postgres://production",
        "REDIS_URL": "redis://production",
        "LITELLM_MASTER_KEY": "sk-1",
        "PROMETHEUS_MULTIPROC_DIR": "/metrics",
        "DJANGO_SETTINGS_MODULE": "other.settings",
    }
    assert gateway_sides.without_settings({**kept, **settings}) == kept


def test_cpu_time_is_that_of_the_process() -> None:
    own = Process(0, os.getpid())
    least = time.process_time_ns()
    seen = own.cpu_ns()
    most = time.process_time_ns()
    assert least <= seen <= most


def test_resident_memory_is_that_of_the_process() -> None:
    own = Process(0, os.getpid())
    before = own.resident_bytes()
    held = b"\x01" * (64 << 20)
    assert own.resident_bytes() - before > len(held) // 2


@pytest.mark.slow
def test_every_side_is_served_and_measured(tmp_path: Path) -> None:
    """In a process of its own: the sides' environment and Django's settings are not ours."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(gateway_sides.HERE)},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    sides = {"relay", "cortex_chat", "cortex_messages"}
    assert summary["added_ttft_us"]["2"].keys() == sides
    assert summary["chunk_delay_us"]["2"].keys() == {"stub", *sides}
    assert all(us > 0 for us in summary["cpu_us_per_request"].values())
    assert all(us > 0 for us in summary["cpu_us_per_chunk"]["2"].values())


@pytest.mark.parametrize("refusal", ["pass", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
def test_a_server_ends_also_if_it_does_not_want_to(
    refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_sides, "STOP_SECONDS", 0.2)
    program = f"import signal; {refusal}; print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        gateway_sides._end(process)
    assert process.returncode is not None
