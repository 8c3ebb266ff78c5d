"""A neuron without a model: streams tokens at the pace its prompt asks for. For benchmarks only.

The last message's content is `tokens=N interval_ms=M bytes=B`. The stream is a neuron's: for who
asks for them a control frame when the prompt is read and one at the end, the role with the first
token, each token in a chunk of its own, finish reason, `[DONE]`. A token says when it was sent, in
nanoseconds of the machine's monotonic clock, and is padded by B bytes. A reader that lags is waited
for. It parses only what a benchmark sends, so that it is never the bottleneck.

    python bench/stub_neuron.py PORT
"""

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
TOKEN = b"t%018d %b"
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"stub",'
    b'"choices":[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
)
FIRST = _CHUNK % (b'{"role":"assistant","content":"' + TOKEN + b'"}', b"null")
LATER = _CHUNK % (b'{"content":"' + TOKEN + b'"}', b"null")
FINISH = _CHUNK % (b"{}", b'"stop"')
_USAGE = (
    b'"usage":{"prompt_tokens":7,"completion_tokens":%d,"cached_tokens":0,"reasoning_tokens":0}'
)
PROMPT_READ = b": cortex {" + _USAGE % 0 + b"}\n\n"
FINISHED = (
    b": cortex {" + _USAGE + b',"timing":{"queue_ms":0.0,"prefill_ms":1.0,"decode_ms":1.0},'
    b'"finish_reason":"stop"}\n\n'
)
DONE = b"data: [DONE]\n\n"
LAST_CHUNK = b"0\r\n\r\n"

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_WANTS_CONTROL_FRAMES = re.compile(rb"x-cortex-frames: 1", re.IGNORECASE)
_ASKED = re.compile(rb"tokens=(\d+) interval_ms=(\d+) bytes=(\d+)")


def as_http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class StubProtocol(asyncio.Protocol):
    """One request after the other on a connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._is_reader_behind = False

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
        self._pad = b"x" * int(asked[3])
        self._has_control_frames = _WANTS_CONTROL_FRAMES.search(head) is not None
        self._num_sent = 0
        self._due = self._loop.time()
        beginning = as_http_chunk(PROMPT_READ) if self._has_control_frames else b""
        self._transport.write(HEAD + beginning)
        self._send_token()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()

    def pause_writing(self) -> None:
        self._is_reader_behind = True
        self._stop()

    def resume_writing(self) -> None:
        self._is_reader_behind = False
        self._due = self._loop.time()
        self._send_token()

    def _send_token(self) -> None:
        if self._num_sent == self._num_tokens:
            self._finish()
            return
        chunk = LATER if self._num_sent else FIRST
        self._num_sent += 1
        self._transport.write(as_http_chunk(chunk % (time.monotonic_ns(), self._pad)))
        if not self._is_reader_behind:  # which the write may have found out
            self._due += self._interval_seconds
            self._timer = self._loop.call_at(self._due, self._send_token)

    def _finish(self) -> None:
        control = FINISHED % self._num_tokens if self._has_control_frames else b""
        self._num_sent += 1
        self._transport.write(as_http_chunk(FINISH + control + DONE))
        self._transport.write(LAST_CHUNK)  # apart, as a neuron's server does

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StubProtocol, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
