"""A small real HTTP/1.1 server in a thread of its own, made to misbehave on demand.

It knows connections, requests and answers, and nothing of what they say. A handler gets an
`Exchange`: it may answer, stream, stall or cut the connection. When the client leaves, the
handler is cancelled. Requests on one connection are served one after the other; a client that
pipelines is cut off.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import httptools

HOST = "127.0.0.1"


class Exchange:
    """One request and the means to answer it."""

    def __init__(self, transport: asyncio.Transport, writable: asyncio.Event) -> None:
        self.method = ""
        self.path = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self.keep_alive = True
        self._transport = transport
        self._writable = writable

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON answer."""
        head = {"content-type": "application/json", "content-length": str(len(body))}
        self._transport.write(self._head(status, head | dict(headers or {})) + body)

    def start_stream(self, status: int = 200, content_type: str = "text/event-stream") -> None:
        """Send the head of an answer whose body follows in pieces."""
        head = {"content-type": content_type, "transfer-encoding": "chunked"}
        self._transport.write(self._head(status, head))

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; waits while the client does not read."""
        await self._writable.wait()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self._transport.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """Cut the connection where it is."""
        self._transport.abort()

    def finish(self) -> None:
        """The handler is done: the connection closes unless the client wants to keep it."""
        if not self.keep_alive:
            self._transport.close()

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        connection = {"connection": "keep-alive" if self.keep_alive else "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **connection}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


Handler = Callable[[Exchange], Awaitable[None]]


class _Connection(asyncio.Protocol):
    """Parses requests and runs the handler on each; cancels it when the client leaves."""

    def __init__(self, handler: Handler, connections: "set[_Connection]") -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._exchange = Exchange(self.transport, self._writable)

    def on_url(self, url: bytes) -> None:
        self._exchange.path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._exchange.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._exchange.body += body

    def on_message_complete(self) -> None:
        self._exchange.method = self._parser.get_method().decode()
        self._exchange.keep_alive = self._parser.should_keep_alive()
        if self._task is not None and not self._task.done():
            self.transport.abort()
            return
        self._task = asyncio.get_running_loop().create_task(self._serve(self._exchange))

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
            exchange.finish()
        except asyncio.CancelledError:
            pass  # the client left


class HttpServer:
    """Serves `handler` on a port of its own. `stop` and `start` keep the port."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        # Bound for life but never listening: nobody else can get the port while we are stopped,
        # and a client that tries it then is refused.
        self._port_holder = _bound_socket(0)
        self.port: int = self._port_holder.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="fake-http", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Open the port, if it is closed."""
        self.run(self._open())

    def stop(self) -> None:
        """Close the port and cut every connection, if it is open."""
        self.run(self._close())

    def close(self) -> None:
        """Stop for good: the thread ends and the port is given back."""
        self.run(self._close())
        self.run(_cancel_other_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()
        self._port_holder.close()

    def run(self, work: Awaitable[None]) -> None:
        """Do something on the server's loop, from another thread, and wait for its end."""

        async def awaiting() -> None:
            await work

        asyncio.run_coroutine_threadsafe(awaiting(), self.loop).result(timeout=10)

    async def _open(self) -> None:
        if self._server is None:
            self._server = await self.loop.create_server(
                lambda: _Connection(self._handler, self._connections), sock=_bound_socket(self.port)
            )

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self._connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # connection_lost runs now


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound


async def _cancel_other_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
