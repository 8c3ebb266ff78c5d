"""A load generator for streams: raw connections, few allocations, times in nanoseconds.

It measures and knows nothing of what it measures: a port, and how many streams at which pace.
"""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass
class Measured:
    """What a run saw. `ttft_ns` has one entry a request."""

    ttft_ns: list[int] = field(default_factory=list)
    num_requests: int = 0
    num_chunks: int = 0
    num_errors: int = 0


class _Stream(asyncio.Protocol):
    """Sends the same request a number of times over one connection."""

    def __init__(self, request: bytes, num_requests: int, measured: Measured) -> None:
        self.finished = asyncio.get_running_loop().create_future()
        self._request = request
        self._left = num_requests
        self._measured = measured

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._is_complete:
            self._measured.num_requests += 1
            if self._parser.get_status_code() != 200 or not self._is_done:
                self._measured.num_errors += 1
            self._next()

    def on_body(self, body: bytes) -> None:
        num_chunks = body.count(b'"delta":{"content"')
        if num_chunks and self._is_first:
            self._is_first = False
            self._measured.ttft_ns.append(time.perf_counter_ns() - self._began_ns)
        self._measured.num_chunks += num_chunks
        self._is_done = self._is_done or b"[DONE]" in body

    def on_message_complete(self) -> None:
        self._is_complete = True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self._measured.num_errors += self._left + 1
            self.finished.set_result(None)

    def _next(self) -> None:
        if self._left == 0:
            if not self.finished.done():
                self.finished.set_result(None)
            self._transport.close()
            return
        self._left -= 1
        self._parser = httptools.HttpResponseParser(self)
        self._is_first, self._is_complete, self._is_done = True, False, False
        self._began_ns = time.perf_counter_ns()
        self._transport.write(self._request)


async def run(
    port: int, num_streams: int, num_requests: int, num_tokens: int, interval_ms: int
) -> Measured:
    """Open `num_streams` connections; each sends `num_requests`, one after the other."""
    content = f"tokens={num_tokens} interval_ms={interval_ms}"
    body = json.dumps(
        {"model": "stub", "stream": True, "messages": [{"role": "user", "content": content}]}
    ).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    measured = Measured()
    loop = asyncio.get_running_loop()
    streams = []
    for number in range(num_streams):
        _, stream = await loop.create_connection(
            lambda: _Stream(request, num_requests, measured), "127.0.0.1", port
        )
        streams.append(stream.finished)
        if interval_ms and number % 8 == 7:
            # Tokens of real streams do not come in step: spread the starts over an interval.
            await asyncio.sleep(8 * interval_ms / 1000 / num_streams)
    await asyncio.gather(*streams)
    return measured
