"""Five hundred clients that leave at random moments: nothing of them may be left behind."""

import asyncio
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.neuron_agent.front import Front, wait_until
from tests.neuron_agent.whole import body_of, is_idle, stream_text, write_talking_model

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(180)]

SETTINGS = {
    "DEVICE_COMMAND": json.dumps([sys.executable, "-m", "neuron_agent.devices.process"]),
    "DEVICES__CPU_MEMORY_MB": "800",
    "DEVICES__THREADS": "1",
    "LOG_LEVEL": "error",
}
NUM_CLIENTS = 500
NUM_AT_ONCE = 60
LONG_PROMPT_TOKENS = 1200
LONGEST_STAY_SECONDS = 0.4
CROWD_SECONDS = 60.0
"""By then all have left; it takes longer only if those that left still hold their places."""
MEGABYTE = 2**20
FEW_MEGABYTES = 100
"""What the heap's fragments may take more after a second crowd than after the first."""
KEEPS_NO_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
"""Otherwise oneDNN keeps the kernels of the last 1024 shapes it met, some 200 MB."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = write_talking_model(tmp_path_factory.mktemp("models") / "tiny")
    with Front(SETTINGS, KEEPS_NO_KERNELS) as front:
        assert front.load(folder, dtype="float32").status == 200
        yield front


def test_clients_that_leave_at_random_moments_leave_nothing_behind(front: Front) -> None:
    said_before = stream_text(front, body_of(1, 60))
    leave_in_crowd(front, NUM_CLIENTS, seed=1)
    rss_before = resident_megabytes(front)
    kinds = leave_in_crowd(front, NUM_CLIENTS, seed=2)
    assert kinds == set(LEAVERS), "every way to leave was taken"
    assert stream_text(front, body_of(1, 60)) == said_before
    wait_until(lambda: resident_megabytes(front) < rss_before + FEW_MEGABYTES, "the memory is back")


def leave_in_crowd(front: Front, num_clients: int, seed: int) -> set[str]:
    """Have clients come and leave; return the ways in which they did, once nothing is left."""
    kinds = asyncio.run(crowd(front.port, num_clients, seed))
    wait_until(lambda: is_idle(front), "nothing is in flight, waiting, running or cached for them")
    return kinds


def resident_megabytes(front: Front) -> int:
    (pid,) = front.device_pids()
    return int(psutil.Process(pid).memory_info().rss) // MEGABYTE


async def crowd(port: int, num_clients: int, seed: int) -> set[str]:
    choice = random.Random(seed)
    places = asyncio.Semaphore(NUM_AT_ONCE)
    kinds = [choice.choice(list(LEAVERS)) for _ in range(num_clients)]

    async def client(number: int, kind: str) -> None:
        async with places:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await LEAVERS[kind](reader, writer, random.Random(f"{seed} {number}"))
            except (ConnectionError, asyncio.IncompleteReadError):
                # The neuron answered first, and closed: that was then the moment.
                return
            finally:
                writer.close()

    async with asyncio.timeout(CROWD_SECONDS), asyncio.TaskGroup() as group:
        for number, kind in enumerate(kinds):
            group.create_task(client(number, kind))
    return set(kinds)


# --- ways to leave -------------------------------------------------------------------------------


async def in_the_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choice: random.Random
) -> None:
    data = request_of(choice, is_streaming=True)
    writer.write(data[: choice.randrange(1, len(data))])
    await writer.drain()


async def before_the_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choice: random.Random
) -> None:
    writer.write(request_of(choice, is_streaming=choice.random() < 0.5))
    await writer.drain()


async def in_prefill(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choice: random.Random
) -> None:
    writer.write(request_of(choice, is_streaming=True, prompt_tokens=LONG_PROMPT_TOKENS))
    await stay(choice, LONGEST_STAY_SECONDS / 4)


async def in_a_whole_answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choice: random.Random
) -> None:
    writer.write(request_of(choice, is_streaming=False))
    await stay(choice, LONGEST_STAY_SECONDS)


async def in_the_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choice: random.Random
) -> None:
    writer.write(request_of(choice, is_streaming=True))
    await reader.readexactly(choice.randrange(1, 4000))


async def aborting_the_connection(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, choice: random.Random
) -> None:
    writer.write(request_of(choice, is_streaming=True))
    await reader.readexactly(choice.randrange(1, 1000))
    writer.transport.abort()


LEAVERS = {
    leaver.__name__: leaver
    for leaver in (
        in_the_request,
        before_the_answer,
        in_prefill,
        in_a_whole_answer,
        in_the_stream,
        aborting_the_connection,
    )
}


async def stay(choice: random.Random, longest_seconds: float) -> None:
    """The random moment itself; nothing is awaited by it."""
    await asyncio.sleep(choice.random() * longest_seconds)


def request_of(choice: random.Random, *, is_streaming: bool, prompt_tokens: int = 0) -> bytes:
    body: dict[str, Any] = body_of(choice.randrange(1000), 400) | {"stream": is_streaming}
    if prompt_tokens:
        body["prompt"] = [choice.randrange(3, 200) for _ in range(prompt_tokens)]
    if choice.random() < 0.2:
        body["n"] = 3
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data
