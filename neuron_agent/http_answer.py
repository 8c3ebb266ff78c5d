"""How the front process answers: JSON, errors in OpenAI's shape, and answers a client may leave.

A client that leaves, streaming or not, must free its place within a step. Only whoever reads
`receive()` learns of it, so each generating answer is raced against that. One that stays and
reads nothing is cut off in the end.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from neuron_agent.errors import BadRequest, NeuronError, RequestFailed, TooLarge
from neuron_agent.wire.events import ChatEvent
from neuron_agent.wire.stream_encoder import StreamEncoder, error_body

log = structlog.get_logger()

STALLED_SECONDS = 60.0
"""A client that takes nothing of what is ready for it for so long counts as gone."""
MAX_BODY_BYTES = 32 * 1024 * 1024
JSON = "application/json"
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def json_answer(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type=JSON)


def error_answer(error: NeuronError) -> Response:
    """Return an error as OpenAI's clients expect it, with Retry-After where a retry can help."""
    answer = json_answer(error_body(error), error.status)
    if error.retry_after_seconds is not None:
        answer.headers["retry-after"] = str(error.retry_after_seconds)
    return answer


async def read_body(request: Request, *, may_be_empty: bool = False) -> bytes:
    """Return the whole body. Raises TooLarge before more than the limit is held."""
    body = bytearray()
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    if not body and not may_be_empty:
        raise BadRequest("the body is empty")
    return bytes(body)


def _too_large() -> TooLarge:
    megabytes = MAX_BODY_BYTES // 2**20
    return TooLarge(f"the body is larger than {megabytes} MB", code="request_too_large")


class LeavableAnswer(Response, ABC):
    """Base of answers that end as soon as their client is gone."""

    def __init__(self) -> None:
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer and listen for the client's leaving at once; whichever ends first ends both."""
        outlet = _Outlet(send)
        answer = asyncio.create_task(self.answer(outlet))
        leaving = asyncio.create_task(_until_disconnect(receive))
        try:
            await _until_over(outlet, answer, leaving)
        finally:
            leaving.cancel()
            answer.cancel()  # does nothing to one that has ended
            await asyncio.gather(answer, leaving, return_exceptions=True)
        if not answer.cancelled():
            answer.result()

    @abstractmethod
    async def answer(self, send: Send) -> None:
        """Send the whole answer; cancelled when the client leaves."""


class _Outlet:
    """The way to a client, and for how long it has taken nothing."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._blocked_since: float | None = None

    async def __call__(self, message: Message) -> None:
        self._blocked_since = time.monotonic()
        await self._send(message)
        self._blocked_since = None

    @property
    def blocked_seconds(self) -> float:
        return 0.0 if self._blocked_since is None else time.monotonic() - self._blocked_since


async def _until_over(outlet: _Outlet, *tasks: asyncio.Task[None]) -> None:
    """Return when one of the tasks has ended, or when the client has taken nothing for too long.

    It looks when a stall could have become too long, not at each frame: that path is hot.
    """
    seconds = STALLED_SECONDS
    while seconds > 0:
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return
        seconds = STALLED_SECONDS - outlet.blocked_seconds
    log.warning("a client that stopped reading is cut off")


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Collector(Protocol):
    """Turns the events of an answer into its body, which comes with the last one."""

    def feed(self, event: ChatEvent) -> bytes | None: ...


class WholeAnswer(LeavableAnswer):
    """A whole answer in one body, which takes its time to make."""

    def __init__(self, make_body: Callable[[], Awaitable[bytes]]) -> None:
        super().__init__()
        self._make_body = make_body

    async def answer(self, send: Send) -> None:
        await _send_whole(send, await self._make_body())


async def collect(collector: Collector, events: AsyncGenerator[ChatEvent, None]) -> bytes:
    """Return the body that all these events make."""
    body = b""
    async with aclosing(events):
        async for event in events:
            body = collector.feed(event) or body
    return body


class StreamAnswer(LeavableAnswer):
    """A stream of frames. Nothing is sent before the first event: an early error has a status."""

    def __init__(self, encoder: StreamEncoder, events: AsyncGenerator[ChatEvent, None]) -> None:
        super().__init__()
        self._encoder = encoder
        self._events = events

    async def answer(self, send: Send) -> None:
        has_head = False
        try:
            async with aclosing(self._events) as events:
                async for event in events:
                    if not has_head:
                        await send_stream_head(send)
                        has_head = True
                    await send_frame(send, self._encoder.feed(event))
        except NeuronError as error:
            if not has_head:
                raise
            await send_frame(send, self._encoder.fail(error))
        except Exception:  # the top of a stream: its client gets an error frame, not a cut line
            log.exception("stream failed")
            if not has_head:
                raise
            failure = RequestFailed("the request failed", code="internal_error")
            await send_frame(send, self._encoder.fail(failure))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class FramesAnswer(LeavableAnswer):
    """A stream of frames that are bytes already."""

    def __init__(self, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._frames = frames

    async def answer(self, send: Send) -> None:
        await send_stream_head(send)
        async with aclosing(self._frames) as frames:
            async for frame in frames:
                await send_frame(send, frame)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_stream_head(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": list(EVENT_STREAM)})


async def send_frame(send: Send, frame: bytes) -> None:
    if frame:
        await send({"type": "http.response.body", "body": frame, "more_body": True})


async def _send_whole(send: Send, body: bytes) -> None:
    headers = [
        (b"content-type", JSON.encode()),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
