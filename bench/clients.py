"""A load generator for streams: raw connections, few allocations, times in nanoseconds.

It measures and knows nothing of what it measures: a port, how to ask there, and how many streams at
which pace. The tokens are a stub neuron's (`stub_neuron.py`): they say when they were sent.
"""

import asyncio
import json
import re
import time
from dataclasses import dataclass, field
from typing import cast

import httptools

_TOKEN = re.compile(rb"t(\d{18}) ")
_MAX_CUT_BYTES = 19
"""Of a token, when the rest of it is in the next piece of a body."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How a stream is asked for, and how it ends, in one dialect."""

    path: str
    headers: bytes
    fields: tuple[tuple[str, object], ...]
    end: bytes


CHAT = Asking("/v1/chat/completions", b"", (), b"data: [DONE]\n\n")
MESSAGES = Asking(
    "/v1/messages",
    b"anthropic-version: 2023-06-01\r\n",
    (("max_tokens", 32_000),),
    b'"message_stop"}\n\n',
)


@dataclass(frozen=True, slots=True)
class Pace:
    """What each stream is made of."""

    num_tokens: int
    interval_ms: int = 0
    pad_bytes: int = 0


@dataclass
class Measured:
    """What a run saw. `ttft_ns` has one entry a request, `delays_ns` one a token."""

    ttft_ns: list[int] = field(default_factory=list)
    delays_ns: list[int] = field(default_factory=list)
    """From the stub's sending of a token to its arrival here."""
    num_requests: int = 0
    num_errors: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.delays_ns)


def request_bytes(asking: Asking, pace: Pace) -> bytes:
    content = f"tokens={pace.num_tokens} interval_ms={pace.interval_ms} bytes={pace.pad_bytes}"
    message = {"role": "user", "content": content}
    fields = {"model": "stub", "stream": True, "messages": [message], **dict(asking.fields)}
    body = json.dumps(fields).encode()
    return (
        b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"%bcontent-length: %d\r\n\r\n%b" % (asking.path.encode(), asking.headers, len(body), body)
    )


class Answer:
    """One answer as it comes, cut anywhere: its tokens are counted, each once."""

    def __init__(self, end: bytes, measured: Measured) -> None:
        self.num_tokens = 0
        self.is_whole = False
        """Its last bytes were those of a stream that came to its end."""
        self._end = end
        self._measured = measured
        self._rest = b""

    def feed(self, body: bytes, now_ns: int) -> None:
        buffer = self._rest + body
        seen = 0
        for token in _TOKEN.finditer(buffer):
            self._measured.delays_ns.append(now_ns - int(token[1]))
            self.num_tokens += 1
            seen = token.end()
        self.is_whole = buffer.endswith(self._end)
        kept = max(_MAX_CUT_BYTES, len(self._end))
        self._rest = buffer[max(seen, len(buffer) - kept) :]


class _Stream(asyncio.Protocol):
    """Sends the same request a number of times over one connection."""

    def __init__(
        self, request: bytes, end: bytes, num_tokens: int, num_requests: int, measured: Measured
    ) -> None:
        self.finished = asyncio.get_running_loop().create_future()
        self._request = request
        self._end = end
        self._num_tokens = num_tokens
        self._left = num_requests
        self._measured = measured

    def stop(self) -> None:
        """Let the request that runs be the last."""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._is_complete:
            answer = self._answer
            is_good = answer.is_whole and answer.num_tokens == self._num_tokens
            self._measured.num_requests += 1
            self._measured.num_errors += not (is_good and self._parser.get_status_code() == 200)
            self._next()

    def on_body(self, body: bytes) -> None:
        now_ns = time.monotonic_ns()
        is_first = self._answer.num_tokens == 0
        self._answer.feed(body, now_ns)
        if is_first and self._answer.num_tokens:
            self._measured.ttft_ns.append(now_ns - self._began_ns)

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
        self._answer = Answer(self._end, self._measured)
        self._is_complete = False
        self._began_ns = time.monotonic_ns()
        self._transport.write(self._request)


async def run(
    port: int, asking: Asking, pace: Pace, num_streams: int, num_requests: int = 1
) -> Measured:
    """Open `num_streams` connections; each sends `num_requests`, one after the other."""
    measured = Measured()
    streams = []
    for number in range(num_streams):
        streams.append(await _open(port, asking, pace, num_requests, measured))
        if pace.interval_ms and number % 8 == 7:
            # Tokens of real streams do not come in step: spread the starts over an interval.
            await asyncio.sleep(8 * pace.interval_ms / 1000 / num_streams)
    await asyncio.gather(*(stream.finished for stream in streams))
    return measured


async def run_beside(
    port: int, asking: Asking, pace: Pace, background: "asyncio.Future[Measured]"
) -> Measured:
    """Send one request after the other over one connection until the background has ended."""
    measured = Measured()
    stream = await _open(port, asking, pace, 1 << 30, measured)
    await asyncio.wait({background})
    stream.stop()
    await stream.finished
    return measured


async def _open(
    port: int, asking: Asking, pace: Pace, num_requests: int, measured: Measured
) -> _Stream:
    request = request_bytes(asking, pace)
    _, stream = await asyncio.get_running_loop().create_connection(
        lambda: _Stream(request, asking.end, pace.num_tokens, num_requests, measured),
        "127.0.0.1",
        port,
    )
    return stream
