"""One HTTP/1.1 connection to a neuron, and the answer that is being read from it.

An asyncio protocol on httptools with flow control both ways: it stops reading while the consumer
lags, and writes only as fast as the neuron takes it. It belongs to one answer at a time and knows
no pool, no retries and nothing of what is said.
"""

import asyncio
from collections import deque
from typing import cast

import httptools

from inference.dispatch.failover import TransportFailure

MAX_HEAD_BYTES = 64 << 10
PAUSE_ABOVE_BYTES = 256 << 10
WRITE_BYTES = 64 << 10


class NeuronFailed(Exception):
    """A neuron that did not answer, or not to the end: its fault or the network's."""

    def __init__(self, failure: TransportFailure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail


class AnswerTooLong(NeuronFailed):
    """A neuron answered with more than was to be read of it."""

    def __init__(self) -> None:
        super().__init__(TransportFailure.BROKEN, "the neuron's answer is too long")


class NeuronConnection(asyncio.Protocol):
    """One connection, and the answer that is being read from it."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = True
        self.num_bytes_read = 0
        self.error: NeuronFailed | None = None
        self._loop = asyncio.get_running_loop()
        self._head_is_read = False
        self._is_sent = False
        self._reusable = False
        self._pieces: deque[bytes] = deque()
        self._queued_bytes = 0
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_seconds = 0.0
        self._heard_at = 0.0
        self._transport: asyncio.Transport

    @property
    def has_pieces(self) -> bool:
        """Something has come of the body that was not read."""
        return bool(self._pieces)

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent on it."""
        return (
            self._is_sent
            and self._reusable
            and self.is_complete
            and self.error is None
            and not self._transport.is_closing()
        )

    async def send(self, head: bytes, body: bytes, idle_seconds: float) -> None:
        """Begin a request, and write it as fast as the neuron takes it."""
        self._begin(idle_seconds)
        if len(body) <= WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            for start in range(0, len(body), WRITE_BYTES):
                await self._writable.wait()
                # An answer before the end of the question is a refusal of the question.
                if self.error is not None or self._head_is_read:
                    return
                self._transport.write(body[start : start + WRITE_BYTES])
        self._is_sent = True

    async def read_head(self) -> None:
        """Raises NeuronFailed."""
        while not self._head_is_read:
            self._raise_if_failed()
            await self._wait()

    async def next_piece(self) -> bytes:
        """Return what has come of the body, b"" at its end. Raises NeuronFailed."""
        while not self._pieces:
            if self.is_complete:
                return b""
            self._raise_if_failed()
            await self._wait()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._queued_bytes = 0
        if self._paused:
            self._paused = False
            self._heard_at = self._loop.time()
            self._transport.resume_reading()
        return piece

    def release(self) -> bool:
        """End the request; return whether the connection can be used again."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self.is_usable and not self.has_pieces:
            return True
        self._transport.abort()
        return False

    def abort(self) -> None:
        self._transport.abort()

    # --- asyncio's callbacks -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.is_complete:  # nothing was asked
            self._fail(TransportFailure.BROKEN, "the neuron spoke out of turn")
            return
        self._heard_at = self._loop.time()
        self.num_bytes_read += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(TransportFailure.BROKEN, "the neuron's answer is no HTTP")
            return
        if not self._head_is_read and self.num_bytes_read > MAX_HEAD_BYTES:
            self._fail(TransportFailure.BROKEN, "the head of the neuron's answer does not end")
        elif self._queued_bytes > PAUSE_ABOVE_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reusable = False
        if self.error is None:
            detail = "the neuron closed the connection" if exc is None else str(exc)
            self.error = NeuronFailed(TransportFailure.BROKEN, detail)
        self._writable.set()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- httptools' callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_is_read:  # trailers come after the body and change nothing
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers.clear()  # an interim answer; the real one follows
        else:
            self._head_is_read = True
            self._writable.set()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._queued_bytes += len(body)

    def on_message_complete(self) -> None:
        if self._head_is_read:
            self.is_complete = True
            self._reusable = self._parser.should_keep_alive()

    # --- inside --------------------------------------------------------------------------------

    def _begin(self, idle_seconds: float) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status, self.headers = 0, {}
        self.is_complete = self._head_is_read = self._is_sent = self._reusable = False
        self.num_bytes_read = 0
        self._idle_seconds = idle_seconds
        self._heard_at = self._loop.time()
        self._idle_timer = self._loop.call_later(idle_seconds, self._check_idle)

    def _check_idle(self) -> None:
        """One timer a request, not one a chunk: it comes again for what is left."""
        quiet_seconds = 0.0 if self._paused else self._loop.time() - self._heard_at
        if quiet_seconds >= self._idle_seconds:
            self._idle_timer = None
            self._fail(TransportFailure.SILENT, f"no byte for {self._idle_seconds:.0f} s")
        else:
            left = self._idle_seconds - quiet_seconds
            self._idle_timer = self._loop.call_later(left, self._check_idle)

    def _fail(self, failure: TransportFailure, detail: str) -> None:
        if self.error is None:
            self.error = NeuronFailed(failure, detail)
        self._transport.abort()
        self._wake()

    def _raise_if_failed(self) -> None:
        if self.error is not None:
            raise NeuronFailed(self.error.failure, self.error.detail)

    async def _wait(self) -> None:
        self._reader = self._loop.create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
