"""Faults in a real device process: what must break does, and the other device generates on."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.faulty_device import FAULT_FILE, HANG, put_fault
from tests.neuron_agent.front import Answer, Front, data_frames, wait_until
from tests.neuron_agent.test_supervisor import device_of
from tests.neuron_agent.whole import (
    MODEL,
    Bystanders,
    body_of,
    expected_texts,
    is_idle,
    stream_text,
    write_talking_model,
)

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(120)]

NEIGHBOUR = "org/neighbour"
SETTINGS = {
    "DEVICE_COMMAND": json.dumps([sys.executable, "-m", "tests.fakes.faulty_device"]),
    "DEVICES__CPU": "2",
    "DEVICES__THREADS": "1",
    "DEVICES__CPU_MEMORY_MB": "800",
    "WATCHDOG__STEP_SECONDS": "3",
    "WATCHDOG__BACKOFF_SECONDS": "0.01",
    "WATCHDOG__MAX_FAULTS": "100",
    "WATCHDOG__MAX_BACKOFF_SECONDS": "0.05",
}
PREDICTABLE = body_of(0, 40)
LONG = body_of(3, 1500)
BYSTANDER_TOKENS = 1500
"""Of the neighbour's stream, which runs across the fault."""

POISON = "AcceleratorError: CUDA error: device-side assert triggered"
OUT_OF_MEMORY = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
OF_ONE_REQUEST = "ValueError: nothing that the table knows"


@pytest.fixture(scope="module")
def fault_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "fault"


@pytest.fixture(scope="module")
def running_front(
    fault_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Front, str]]:
    """Yield a neuron with a model on each of two devices, and what the first model says."""
    folder = write_talking_model(tmp_path_factory.mktemp("models") / "tiny")
    with Front(SETTINGS, {FAULT_FILE: str(fault_file)}) as front:
        assert front.load(folder, devices=[0], dtype="float32").status == 200
        assert front.load(folder, NEIGHBOUR, devices=[1], dtype="float32").status == 200
        yield front, stream_text(front, PREDICTABLE)


@pytest.fixture
def front(running_front: tuple[Front, str]) -> Iterator[Front]:
    """Yield the neuron; afterwards the model must answer as ever, whatever happened to it."""
    front, said_before = running_front
    yield front
    wait_until(lambda: front.phase() == "ready", "the model is ready")
    assert stream_text(front, PREDICTABLE) == said_before
    wait_until(lambda: is_idle(front) and is_idle(front, NEIGHBOUR), "nothing is left behind")


def pid_of(front: Front, index: int) -> int:
    (pid,) = (pid for pid in front.device_pids() if device_of(pid) == f"cpu:{index}")
    return pid


def ask(front: Front) -> Answer:
    return front.ask("POST", "/v1/completions", LONG)


def check_replaced(front: Front, victim: int, neighbour: int, kind: str) -> None:
    """The device process is another one with the same model; the neighbour's is the same."""
    wait_until(lambda: victim not in front.device_pids(), "the broken process is gone")
    wait_until(lambda: front.phase() == "ready", "the model recovers by itself")
    assert pid_of(front, 0) != victim
    assert pid_of(front, 1) == neighbour
    assert front.phase(NEIGHBOUR) == "ready"
    fault = front.get("/health")["faults"][-1]
    assert (fault["kind"], fault["device"], fault["models"]) == (kind, 0, [MODEL])


def test_poisoned_device_is_replaced_and_the_other_generates_on(
    front: Front, fault_file: Path
) -> None:
    victim, neighbour = pid_of(front, 0), pid_of(front, 1)
    with Bystanders(front, 1, BYSTANDER_TOKENS, NEIGHBOUR) as bystanders:
        put_fault(fault_file, 0, POISON)
        answer = ask(front)
        assert (answer.status, answer.error["code"]) == (503, "device_fault")
        assert answer.headers["retry-after"]
        assert bystanders.are_running
        check_replaced(front, victim, neighbour, "poisoned")
        bystanders.check()
    assert POISON.partition(": ")[2] in front.get("/health")["faults"][-1]["error"]


def test_hung_step_is_seen_and_its_process_replaced(front: Front, fault_file: Path) -> None:
    victim, neighbour = pid_of(front, 0), pid_of(front, 1)
    with Bystanders(front, 1, BYSTANDER_TOKENS, NEIGHBOUR) as bystanders:
        put_fault(fault_file, 0, HANG)
        answer = ask(front)
        assert (answer.status, answer.error["code"]) == (503, "device_fault")
        check_replaced(front, victim, neighbour, "hung")
        bystanders.check()


def test_killed_process_is_replaced_in_the_middle_of_streams(front: Front) -> None:
    victim, neighbour = pid_of(front, 0), pid_of(front, 1)
    with Bystanders(front, 1, BYSTANDER_TOKENS, NEIGHBOUR) as bystanders:
        front.open_chat("hi", stream=True, ignore_eos=True, max_tokens=1500)
        wait_until(lambda: front.num_requests() == 1, "a request runs")
        num_faults = len(front.get("/health")["faults"])
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(front.get("/health")["faults"]) > num_faults, "it is noticed")
        assert bystanders.are_running
        check_replaced(front, victim, neighbour, "died")
        front.hang_up()
        bystanders.check()


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, OF_ONE_REQUEST])
def test_error_that_is_no_poison_ends_one_request_and_nothing_else(
    front: Front, fault_file: Path, error: str
) -> None:
    bodies = [body_of(number, 300) for number in range(4)]
    expected = expected_texts(front, bodies)
    pids = pid_of(front, 0), pid_of(front, 1)
    with (
        Bystanders(front, 1, BYSTANDER_TOKENS, NEIGHBOUR) as bystanders,
        ThreadPoolExecutor(len(bodies)) as pool,
    ):
        streams = [pool.submit(outcome, front, body) for body in bodies]
        wait_until(lambda: front.num_requests() == len(bodies), "all are admitted")
        put_fault(fault_file, 0, error)
        outcomes = [stream.result() for stream in streams]
        bystanders.check()
    failed = [number for number, outcome in enumerate(outcomes) if outcome == "request_failed"]
    assert len(failed) == 1
    assert [each for each in outcomes if each != "request_failed"] == [
        text for number, text in enumerate(expected) if number not in failed
    ]
    assert (pid_of(front, 0), pid_of(front, 1)) == pids
    assert front.phase() == "ready"


def outcome(front: Front, body: dict[str, Any]) -> str:
    """Return a stream's text, or the code of the error that ended it."""
    answer = front.ask("POST", "/v1/completions", {**body, "stream": True})
    frames = answer.body.removesuffix(b"\n\n").split(b"\n\n")
    chunks = list(data_frames(frames)) if answer.status == 200 else [answer.json]
    errors = [str(chunk["error"]["code"]) for chunk in chunks if "error" in chunk]
    return errors[0] if errors else "".join(c["choices"][0]["text"] for c in chunks if c["choices"])
