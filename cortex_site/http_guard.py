"""uvicorn's HTTP protocol, with limits for clients that send slowly or without end.

Beside that it mends four things in uvicorn: a client that leaves has left the request that is being
answered, also when others queue behind it; an offer of HTTP/2 costs no request its body; the head
of an answer goes out together with what follows it at once; what is no HTTP is refused in JSON.

It knows bytes and clocks, not paths. A request's head must be there within `HEAD_SECONDS` and be no
larger than about `MAX_HEAD_BYTES`; its body must keep coming, `BODY_STEP_BYTES` in every
`BODY_STEP_SECONDS`. Otherwise the connection is closed. Answers are not its business: they may take
as long as they like.
"""

import asyncio
import re
from typing import Any, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from inference.wire import openai
from inference.wire.errors import InvalidRequest

HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 64 * 1024
BODY_STEP_SECONDS = 10.0
BODY_STEP_BYTES = 256 * 1024
MAX_QUEUED = 8
"""Requests that wait on one connection for the answer to an earlier one, and are read meanwhile."""

_H2C = b"h2c"
_H2C_LINE = re.compile(rb"\r\nupgrade:[ \t]*h2c[ \t]*(?=\r\n)", re.IGNORECASE)


class HeadJoiningTransport:
    """Sends the head of an answer with the first bytes of its body, if they come in the same turn.

    Written alone the head would wake the client for nothing, and keep the first token waiting.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class GuardedProtocol(HttpToolsProtocol):
    """Has a timer run while a request is being received, and only then."""

    _deadline: asyncio.TimerHandle | None = None
    _due_seconds = 0.0
    """How long what is received now may take from here on; 0 if nothing has changed."""
    _answering: RequestResponseCycle | None = None
    _is_in_head = True
    _head_bytes = 0
    _step_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        joining = HeadJoiningTransport(transport, self.loop)
        self.transport = cast(asyncio.Transport, joining)
        self._arm(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        # Counted in what is read at once: a head with its body behind it may come in one piece.
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._close()
            return
        if self._is_answered() and _H2C in data:
            data = _without_h2c(data)
        super().data_received(data)
        if self._due_seconds:  # most requests come whole, in one piece, and need no timer
            self._arm(self._due_seconds)
            self._due_seconds = 0.0
        if self._is_in_head:
            self._head_bytes += len(data)
        if self._deadline is None and self._is_answered():
            # Bytes that begin no request have stopped uvicorn's own timer for idle connections.
            self._arm(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._due_seconds = HEAD_SECONDS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._step_bytes = False, 0
        self._due_seconds = BODY_STEP_SECONDS
        super().on_headers_complete()
        if 0 < len(self.pipeline) <= MAX_QUEUED:
            # uvicorn reads nothing while requests queue; only who reads hears the client leave.
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._step_bytes += len(body)
        if self._step_bytes >= BODY_STEP_BYTES:
            self._step_bytes = 0
            self._due_seconds = BODY_STEP_SECONDS
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._due_seconds = 0.0
        self._disarm()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP as every other error is told, in the commonest dialect.

        Not in the middle of an answer, which would look as if it were part of that.
        """
        if self.cycle is not None and self.cycle.response_started and not self._is_answered():
            self._close()
            return
        answer = openai.DIALECT.error_answer(InvalidRequest(msg), "")
        headers = (
            *self.server_state.default_headers,
            *answer.headers,
            (b"content-length", str(len(answer.body)).encode()),
            (b"connection", b"close"),
        )
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join((STATUS_LINE[400], *lines, b"\r\n", answer.body)))
        self.transport.close()

    def handle_websocket_upgrade(self) -> None:
        self._due_seconds = 0.0
        self._disarm()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        answering = self._answering
        if answering is not None and not answering.response_complete:
            # uvicorn tells only the request that came last, and that may still be in the queue.
            answering.disconnected = True
            answering.message_event.set()

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.pipeline:
            # We ourselves read nothing more until the requests before it are answered.
            self._arm(BODY_STEP_SECONDS)
        else:
            self._close()

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()


def _without_h2c(data: bytes) -> bytes:
    """Return the start of a request without its offer to go on in HTTP/2, which is ours to ignore.

    Java's own client makes it with each first request; uvicorn would take the body for HTTP/2's.
    """
    head, border, body = data.partition(b"\r\n\r\n")
    return _H2C_LINE.sub(b"", head + b"\r\n")[:-2] + border + body
