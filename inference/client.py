"""The client's side of one HTTP request, as ASGI shows it: read, watch for departure, answer.

It knows HTTP and the shape of errors, not models and neurons. A client that leaves is an ordinary
event: inside `watched` it ends what is being done for it at once, whatever that is.
"""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from inference.wire.errors import (
    CortexError,
    RequestTooLarge,
    error_headers,
    openai_body,
    openai_frame,
)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
JSON_HEADER: Header = (b"content-type", b"application/json")

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ClientLeft(Exception):
    """The client closed its connection: nobody reads what we would say."""


class Client:
    """One request's client. `headers` of every answer get its request id."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.has_begun = False
        """The head of the answer was sent: errors are frames from here on."""
        self._receive = receive
        self._send = send
        self._headers = dict(scope["headers"])
        self._peer = scope.get("client")
        self._has_ended = False
        self._has_left = False
        self._wrote_at = time.monotonic()
        offered_id = self.header(b"x-request-id")
        is_sane = _SANE_ID.fullmatch(offered_id) is not None
        self.request_id = offered_id if is_sane else f"req-{secrets.token_hex(12)}"

    def header(self, name: bytes) -> str:
        return str(self._headers.get(name, b"").decode("latin-1"))

    @property
    def address(self) -> str:
        return str(self._peer[0]) if self._peer else ""

    @property
    def quiet_seconds(self) -> float:
        """How long ago the client was last sent anything."""
        return time.monotonic() - self._wrote_at

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises RequestTooLarge, ClientLeft."""
        declared = self.header(b"content-length")
        if declared.isascii() and declared.isdigit() and int(declared) > limit_bytes:
            raise RequestTooLarge(limit_bytes)
        pieces: list[bytes] = []
        num_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            pieces.append(message.get("body", b""))
            num_bytes += len(pieces[-1])
            if num_bytes > limit_bytes:
                raise RequestTooLarge(limit_bytes)
            if not message.get("more_body", False):
                return b"".join(pieces)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancel what is inside when the client leaves; raises ClientLeft then."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.get_running_loop().create_task(self._watch(task))
        try:
            yield
        except asyncio.CancelledError:
            if not self._has_left:
                raise
            task.uncancel()
            raise ClientLeft from None
        finally:
            watcher.cancel()

    async def _watch(self, task: "asyncio.Task[Any]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # The end of our own answer looks the same.
        if not self._has_ended:
            self._has_left = True
            task.cancel()

    async def begin_stream(self, headers: Iterable[Header] = ()) -> None:
        """Send the head of an event stream, unless it was sent."""
        if not self.has_begun:
            await self._begin(200, (*STREAM_HEADERS, *headers))

    async def write(self, data: bytes) -> None:
        """Send a piece of a stream; waits while the client does not read."""
        self._wrote_at = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self._has_ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._begin(status, (*headers, length))
        await self.end(body)

    async def fail(self, error: CortexError, headers: Iterable[Header] = ()) -> None:
        """Say what went wrong: as an answer, or as a stream's last frame."""
        if self._has_ended:
            return
        if self.has_begun:
            await self.end(openai_frame(error))
            return
        closing: tuple[Header, ...] = ()
        if isinstance(error, RequestTooLarge):
            closing = ((b"connection", b"close"),)  # the rest of the body is not read
        await self.answer(
            error.status, openai_body(error), (*error_headers(error), *headers, *closing)
        )

    async def _begin(self, status: int, headers: Iterable[Header]) -> None:
        self.has_begun = True
        self._wrote_at = time.monotonic()
        own = (b"x-request-id", self.request_id.encode())
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, own]}
        )
