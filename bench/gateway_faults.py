"""Clients that behave badly, and what they cost the others: readers that stall, slow senders.

It measures a side as it is given, and knows nothing of how it works.
"""

import asyncio
import contextlib
import socket
import statistics
import time
from dataclasses import dataclass

from clients import Measured, Pace, request_bytes, run
from gateway_sides import Side

NUM_STALLED = 16
STALLED_PACE = Pace(num_tokens=1_000, interval_ms=10, pad_bytes=32 << 10)
"""32 MB: more than the kernel's buffers on the way take, so that the rest is held by the side, or
the stub is made to wait."""
RECEIVE_BUFFER_BYTES = 64 << 10
NUM_OTHERS = 32
OTHERS_INTERVAL_MS = 50
SAMPLE_SECONDS = 0.1

NUM_SLOW = 32
"""Of each kind."""
PATIENCE_SECONDS = 15.0
BYTE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Stalled:
    """What readers that stall did: to memory, and to the tokens of others."""

    bytes_each: float
    alone_ns: list[int]
    """Delays of the others' tokens without them."""
    beside_ns: list[int]


@dataclass(frozen=True, slots=True)
class SlowSenders:
    """Of senders of a byte a second: how many were cut off, and when the last of those was."""

    num_senders: int
    num_closed: int
    slowest_seconds: float


async def stalled_readers(side: Side, seconds: float) -> Stalled:
    """Have other clients' tokens timed, first alone, then beside clients that read nothing."""
    alone = await _others(side, seconds)
    before = side.process.resident_bytes()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(NUM_STALLED):
            stack.enter_context(await _stalled_reader(side))
        others = asyncio.create_task(_others(side, seconds))
        peak = before
        while not others.done():
            peak = max(peak, side.process.resident_bytes())
            await asyncio.wait({others}, timeout=SAMPLE_SECONDS)
        beside = await others
    return Stalled((peak - before) / NUM_STALLED, alone.delays_ns, beside.delays_ns)


async def slow_senders(side: Side) -> SlowSenders:
    """See what becomes of clients whose head, or body, comes a byte a second."""
    request = request_bytes(side.asking, Pace(num_tokens=1))
    head, border, body = request.partition(b"\r\n\r\n")
    kinds = ((b"", head), (head + border, body))
    closed = await asyncio.gather(
        *(
            _closed_after(side.process.port, at_once, slowly)
            for at_once, slowly in kinds
            for _ in range(NUM_SLOW)
        )
    )
    seconds = [each for each in closed if each is not None]
    return SlowSenders(len(closed), len(seconds), max(seconds, default=0.0))


def describe_stalled(stalled: Stalled) -> dict[str, float]:
    alone, beside = sorted(stalled.alone_ns), sorted(stalled.beside_ns)
    return {
        "mb_each": round(stalled.bytes_each / 1e6, 2),
        "others_delay_us_p50_alone": round(statistics.median(alone) / 1000, 1),
        "others_delay_us_p50": round(statistics.median(beside) / 1000, 1),
        "others_delay_us_p99_alone": round(alone[int(0.99 * len(alone))] / 1000, 1),
        "others_delay_us_p99": round(beside[int(0.99 * len(beside))] / 1000, 1),
    }


async def _others(side: Side, seconds: float) -> Measured:
    num_tokens = max(1, round(seconds * 1000 / OTHERS_INTERVAL_MS))
    measured = await run(
        side.process.port, side.asking, Pace(num_tokens, OTHERS_INTERVAL_MS), NUM_OTHERS
    )
    if measured.num_errors:
        raise SystemExit(f"{side.name}: {measured.num_errors} streams broke beside stalled readers")
    return measured


async def _stalled_reader(side: Side) -> socket.socket:
    """Return a connection on which a stream was asked for; nothing of it will be read."""
    loop = asyncio.get_running_loop()
    connection = socket.socket()
    connection.setblocking(False)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    await loop.sock_connect(connection, ("127.0.0.1", side.process.port))
    await loop.sock_sendall(connection, request_bytes(side.asking, STALLED_PACE))
    return connection


async def _closed_after(port: int, at_once: bytes, slowly: bytes) -> float | None:
    """Return after how many seconds the connection was closed; None if it was not in time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    sender = asyncio.create_task(_send_slowly(writer, at_once, slowly))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionError):
                while await reader.read(4096):
                    pass
            return time.monotonic() - began
    except TimeoutError:
        return None
    finally:
        sender.cancel()
        writer.close()


async def _send_slowly(writer: asyncio.StreamWriter, at_once: bytes, slowly: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(at_once)
        for byte in slowly:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(BYTE_SECONDS)
