"""Clients of a completions endpoint: each streams one request after another and notes the times.

It measures one server's port and knows nothing of which server it is.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools

PROMPT_TOKENS = (32, 512)
OUTPUT_TOKENS = (64, 128)
TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Job:
    """One request: what is asked, and how many tokens must come."""

    prompt_ids: list[int]
    num_tokens: int


@dataclass(slots=True)
class Times:
    """When the text of one request came, in seconds of one clock."""

    sent_at: float
    arrived_at: list[float] = field(default_factory=list)
    num_tokens: int = 0

    @property
    def ttft_seconds(self) -> float:
        return self.arrived_at[0] - self.sent_at

    @property
    def gaps_seconds(self) -> Iterator[float]:
        """Yield the time from each piece of text to the next: the inter-token latencies."""
        pairs = zip(self.arrived_at, self.arrived_at[1:], strict=False)
        return (later - earlier for earlier, later in pairs)


def mixed_jobs(corpus: Sequence[int], num_jobs: int, seed: int) -> list[Job]:
    """Return jobs with prompts and outputs of many lengths, the same for the same seed."""
    choice = random.Random(seed)
    jobs = []
    for _ in range(num_jobs):
        length = choice.randint(*PROMPT_TOKENS)
        start = choice.randrange(len(corpus) - length)
        jobs.append(Job(list(corpus[start : start + length]), choice.randint(*OUTPUT_TOKENS)))
    return jobs


class StreamFailed(Exception):
    """A request did not give what it was asked for: the numbers would mean nothing."""


class _Stream(asyncio.Protocol):
    """One request over one connection; `finished` holds its Times."""

    def __init__(self, request: bytes) -> None:
        self.finished: asyncio.Future[Times] = asyncio.get_running_loop().create_future()
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._times = Times(time.perf_counter())
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        now = time.perf_counter()
        *frames, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for frame in frames:
            if frame.startswith(b"data: {"):
                self._note(json.loads(frame[6:]), now)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:
            self._fail(f"answered {self._parser.get_status_code()}: {self._rest[:300]!r}")
        elif not self.finished.done():
            self.finished.set_result(self._times)
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the connection was cut")

    def _note(self, chunk: dict[str, Any], now: float) -> None:
        if "error" in chunk:
            self._fail(str(chunk["error"]))
        if chunk.get("choices") and not chunk["choices"][0].get("finish_reason"):
            self._times.arrived_at.append(now)
        if usage := chunk.get("usage"):
            self._times.num_tokens = usage["completion_tokens"]

    def _fail(self, why: str) -> None:
        if not self.finished.done():
            self.finished.set_exception(StreamFailed(why))


async def stream_one(port: int, body: dict[str, Any]) -> Times:
    """Send a streaming request to /v1/completions. Raises StreamFailed."""
    data = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: _Stream(head.encode() + data), "127.0.0.1", port
    )
    async with asyncio.timeout(TIMEOUT_SECONDS):
        times = await stream.finished
    if not times.arrived_at:
        raise StreamFailed("no text came")
    return times


async def run_jobs(port: int, bodies: Sequence[dict[str, Any]], num_clients: int) -> list[Times]:
    """Have each client send one request after the other until all are answered."""
    left = iter(bodies)
    results: list[Times] = []

    async def client() -> None:
        for body in left:
            results.append(await stream_one(port, body))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())
    return results
