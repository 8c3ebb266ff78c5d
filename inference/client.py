"""The client's side of one HTTP request, as ASGI shows it: read, watch for departure, answer.

It knows HTTP and its client's dialect, not models and neurons. A client that leaves is an ordinary
event: inside `watched` it ends what is being done for it at once, whatever that is.
"""

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from inference.wire.dialect import Dialect, Header
from inference.wire.errors import CortexError, RequestTooLarge, Saturated

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
JSON_HEADER: Header = (b"content-type", b"application/json")
STALLED_SECONDS = 60.0
"""A client that takes nothing of what it is sent for so long has left, and did not say so."""
DISCARD_BYTES = 64 << 20
DISCARD_SECONDS = 5.0

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ClientLeft(Exception):
    """The client closed its connection: nobody reads what we would say."""


class Client:
    """One request's client. `headers` of every answer get its request id."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = str(scope.get("query_string", b"").decode("latin-1"))
        self.error_frame: Callable[[CortexError, str], bytes] = dialect.error_frame
        """How a stream that has begun says that it failed."""
        self.has_begun = False
        """The head of the answer was sent: errors are frames from here on."""
        self.has_ended = False
        """The end of the answer was handed over: there is nothing left to say."""
        self._dialect = dialect
        self._receive = receive
        self._send = send
        self._headers = dict(scope["headers"])
        self._peer = scope.get("client")
        self._is_sending = True
        """The end of the body has not come."""
        self._has_sent = False
        self._has_left = False
        self._num_writing = 0
        self._wrote_at = time.monotonic()
        self._stall_timer: asyncio.TimerHandle | None = None
        offered_id = self.header(b"x-request-id")
        is_sane = _SANE_ID.fullmatch(offered_id) is not None
        self.request_id = offered_id if is_sane else f"req-{secrets.token_hex(12)}"

    def header(self, name: bytes) -> str:
        return str(self._headers.get(name, b"").decode("latin-1"))

    @property
    def credential(self) -> str:
        """What the client shows of who it is, in either of two headers; "" for nothing."""
        authorization = self.header(b"authorization")
        scheme, _, token = authorization.partition(" ")
        shown = token.strip() if scheme.lower() == "bearer" else authorization
        return shown or self.header(b"x-api-key")

    @property
    def address(self) -> str:
        return str(self._peer[0]) if self._peer else ""

    @property
    def quiet_seconds(self) -> float:
        """How long ago the client was last sent anything."""
        return time.monotonic() - self._wrote_at

    @property
    def is_behind(self) -> bool:
        """Something is being written: the client has not taken all of it."""
        return self._num_writing > 0

    async def read_body(self, limit_bytes: int, hold: Callable[[int], None]) -> bytes:
        """Return the body; `hold` is told of each piece before it is kept, and may raise.

        Raises RequestTooLarge, ClientLeft and what `hold` raises.
        """
        pieces: list[bytes] = []
        num_bytes = 0
        try:
            self._check_declared(limit_bytes)
            while self._is_sending:
                piece = await self._next_of_body()
                num_bytes += len(piece)
                if num_bytes > limit_bytes:
                    raise RequestTooLarge(limit_bytes)
                hold(len(piece))
                pieces.append(piece)
        except CortexError:
            pieces.clear()
            await self._discard_body()
            raise
        return b"".join(pieces)

    def _check_declared(self, limit_bytes: int) -> None:
        """Raises RequestTooLarge."""
        declared = self.header(b"content-length")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit_bytes:
            raise RequestTooLarge(limit_bytes)

    async def _next_of_body(self) -> bytes:
        """Raises ClientLeft."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        self._has_sent = True
        self._is_sending = message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _discard_body(self) -> None:
        """Take what is left of a refused body: most clients read no answer while they send.

        Not from one that waits to be told to go on. Raises ClientLeft.
        """
        if not self._has_sent and self.header(b"expect").lower() == "100-continue":
            return
        left = DISCARD_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while self._is_sending and left > 0:
                    left -= len(await self._next_of_body())

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Cancel what is inside when the client leaves or stops reading; raises ClientLeft then."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        watcher = loop.create_task(self._watch(task))
        self._stall_timer = loop.call_later(STALLED_SECONDS, self._check_stall, task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._has_left:
                raise
            task.uncancel()
            raise ClientLeft from None
        finally:
            watcher.cancel()
            self._stall_timer.cancel()

    async def _watch(self, task: "asyncio.Task[Any]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        # The end of our own answer looks the same.
        if not self.has_ended:
            self._leave(task)

    def _check_stall(self, task: "asyncio.Task[Any]") -> None:
        """One timer a request, not one a piece: it comes again for what is left."""
        stalled_seconds = time.monotonic() - self._wrote_at if self.is_behind else 0.0
        if stalled_seconds >= STALLED_SECONDS:
            self._cut()
            self._leave(task)
        else:
            left = STALLED_SECONDS - stalled_seconds
            loop = asyncio.get_running_loop()
            self._stall_timer = loop.call_later(left, self._check_stall, task)

    def _leave(self, task: "asyncio.Task[Any]") -> None:
        if not self._has_left:
            self._has_left = True
            task.cancel()

    def _cut(self) -> None:
        """End the connection with all that was not read of it.

        ASGI has no word for it, but uvicorn's `send` belongs to an object that has the transport.
        Another server closes by itself an answer that is left without an end.
        """
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        abort = getattr(transport, "abort", None)
        if abort is not None:
            abort()

    async def begin_stream(self, headers: Iterable[Header] = ()) -> None:
        """Send the head of an event stream, unless it was sent."""
        if not self.has_begun:
            await self._begin(200, (*STREAM_HEADERS, *headers))

    async def write(self, data: bytes) -> None:
        """Send a piece of a stream; waits while the client does not read."""
        await self._pass({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self.has_ended = True
        await self._pass({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> None:
        """Send a whole answer."""
        length = (b"content-length", str(len(body)).encode())
        await self._begin(status, (*headers, length))
        await self.end(body)

    async def fail(self, error: CortexError, headers: Iterable[Header] = ()) -> None:
        """Say what went wrong: as an answer, or as a stream's last frame."""
        if self.has_ended:
            return
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self._tell(error, headers)
        except TimeoutError:
            self._cut()

    async def _tell(self, error: CortexError, headers: Iterable[Header]) -> None:
        if self.has_begun:
            await self.end(self.error_frame(error, self.request_id))
            return
        closing: tuple[Header, ...] = ()
        if self._has_unread_body(error):
            closing = ((b"connection", b"close"),)
        answer = self._dialect.error_answer(error, self.request_id)
        await self.answer(answer.status, answer.body, (*answer.headers, *headers, *closing))

    def _has_unread_body(self, error: CortexError) -> bool:
        """Whether a body was refused that is still on its way."""
        return self._is_sending and isinstance(error, RequestTooLarge | Saturated)

    async def _begin(self, status: int, headers: Iterable[Header]) -> None:
        own = [(name, self.request_id.encode()) for name in self._dialect.request_id_headers]
        await self._pass(
            {"type": "http.response.start", "status": status, "headers": [*headers, *own]}
        )
        self.has_begun = True  # not before: who is cancelled until then has sent nothing

    async def _pass(self, message: dict[str, Any]) -> None:
        """Hand a message to the server, which keeps us waiting while the client does not read."""
        self._num_writing += 1
        self._wrote_at = time.monotonic()
        try:
            await self._send(message)
        finally:
            self._num_writing -= 1
