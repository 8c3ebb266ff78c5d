"""A neuron without a model: streams tokens at the pace its prompt asks for. For benchmarks only.

The last message's content is `tokens=N interval_ms=M`. Each token is a chunk of its own, as a
neuron's are; the stream ends with finish reason, control frame and `[DONE]`. It parses only what a
benchmark sends, so that it is never the bottleneck.

    python bench/stub_neuron.py PORT
"""

import asyncio
import re
import sys
from typing import cast

import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub",'
    b'"choices":[{"index":0,"delta":{"content":"token "},"finish_reason":null}]}\n\n'
)
LAST = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub",'
    b'"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b': cortex {"usage":{"prompt_tokens":7,"completion_tokens":%d},'
    b'"timing":{"queue_ms":0,"prefill_ms":1,"decode_ms":1},"finish_reason":"stop"}\n\n'
    b"data: [DONE]\n\n"
)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_ASKED = re.compile(rb"tokens=(\d+) interval_ms=(\d+)")


def as_http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN = as_http_chunk(CHUNK)


class StubProtocol(asyncio.Protocol):
    """One request after the other on a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        self._received = b""
        asked = _ASKED.search(body)
        assert asked is not None
        self._num_tokens = int(asked[1])
        self._interval_seconds = int(asked[2]) / 1000
        self._num_sent = 0
        self._due = self._loop.time()
        self._transport.write(HEAD)
        self._send_token()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _send_token(self) -> None:
        if self._num_sent == self._num_tokens:
            last = as_http_chunk(LAST % self._num_tokens)
            self._transport.write(last + b"0\r\n\r\n")
            return
        self._transport.write(TOKEN)
        self._num_sent += 1
        self._due += self._interval_seconds
        self._timer = self._loop.call_at(self._due, self._send_token)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StubProtocol, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
