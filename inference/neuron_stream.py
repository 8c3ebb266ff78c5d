"""A small HTTP/1.1 client for streams from neurons: pooled connections, one answer at a time.

It speaks HTTP and nothing of what is said: no models, no frames, no retries on another neuron.
The one repetition it makes is HTTP's own: a pooled connection that the neuron closed at the same
moment is replaced by a fresh one, if no byte of an answer had come. Later than that it is no longer
the same moment: the neuron has had the request, and may have died of it.

A connection belongs to one answer at a time. It goes back to the pool when the answer was read to
its end, and is aborted otherwise.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from inference.dispatch.failover import TransportFailure
from inference.neuron_connection import AnswerTooLong, NeuronConnection, NeuronFailed

CONNECT_SECONDS = 3.0
SAME_MOMENT_SECONDS = 1.0
MAX_IDLE_CONNECTIONS = 512
"""Per neuron."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a neuron listens."""

    host: str
    port: int
    is_tls: bool
    base_path: str


@lru_cache(maxsize=1024)
def origin_of(endpoint: str) -> Origin:
    parts = urlsplit(endpoint)
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    return Origin(parts.hostname or "", port, is_tls, parts.path.rstrip("/"))


class NeuronAnswer:
    """The answer to a request: its head has been read, the body comes piece by piece."""

    def __init__(
        self, pool: "NeuronConnections", origin: Origin, connection: NeuronConnection
    ) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self._pool = pool
        self._origin = origin
        self._connection = connection

    @property
    def is_complete(self) -> bool:
        """Whether it was read to its end."""
        return self._connection.is_complete and not self._connection.has_pieces

    async def next_piece(self) -> bytes:
        """Return what has come of the body, b"" at its end. Raises NeuronFailed."""
        return await self._connection.next_piece()

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body. Raises NeuronFailed, AnswerTooLong if it is longer than that."""
        pieces: list[bytes] = []
        num_bytes = 0
        while piece := await self.next_piece():
            pieces.append(piece)
            num_bytes += len(piece)
            if num_bytes > max_bytes:
                raise AnswerTooLong
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection back, or cut it if the answer was not read to its end."""
        self._pool.take_back(self._origin, self._connection)


class NeuronConnections:
    """The connections of a gateway to all neurons. Belongs to one event loop."""

    def __init__(self) -> None:
        self._idle: dict[Origin, deque[NeuronConnection]] = {}
        self._leased: set[NeuronConnection] = set()
        self._tls: ssl.SSLContext | None = None

    async def post(
        self,
        endpoint: str,
        path: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        idle_seconds: float,
    ) -> NeuronAnswer:
        """Send a request and return once the head of its answer is read. Raises NeuronFailed."""
        try:
            origin = origin_of(endpoint)
            head = _head(origin, path, headers, len(body))
        except ValueError as error:  # also UnicodeError: nobody listens at no address
            raise NeuronFailed(TransportFailure.REFUSED, str(error)) from None
        connection = self._take_idle(origin)
        if connection is not None:
            began = time.monotonic()
            try:
                return await self._ask(connection, origin, head, body, idle_seconds)
            except NeuronFailed as error:
                is_at_once = time.monotonic() - began < SAME_MOMENT_SECONDS
                is_closed = error.failure is TransportFailure.BROKEN
                if connection.num_bytes_read or not is_closed or not is_at_once:
                    raise
        connection = await self._connect(origin)
        try:
            return await self._ask(connection, origin, head, body, idle_seconds)
        except NeuronFailed as error:
            if error.failure is TransportFailure.BROKEN and not connection.num_bytes_read:
                # A neuron that is being killed still takes connections; one that is dead refuses.
                (await self._connect(origin)).abort()
            raise

    def take_back(self, origin: Origin, connection: NeuronConnection) -> None:
        self._leased.discard(connection)
        idle = self._idle.setdefault(origin, deque())
        if not connection.release():
            return
        if len(idle) < MAX_IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.abort()

    def close(self) -> None:
        """Cut every connection, used or idle."""
        for idle in self._idle.values():
            for connection in idle:
                connection.abort()
        for connection in self._leased:
            connection.abort()
        self._idle.clear()

    @property
    def num_idle(self) -> int:
        """Connections that the next requests can use."""
        return sum(connection.is_usable for idle in self._idle.values() for connection in idle)

    def check_integrity(self) -> None:
        """Raise AssertionError if a connection was not given back. For when nothing runs."""
        assert not self._leased, f"{len(self._leased)} connections were not given back"

    async def _ask(
        self,
        connection: NeuronConnection,
        origin: Origin,
        head: bytes,
        body: bytes,
        idle_seconds: float,
    ) -> NeuronAnswer:
        self._leased.add(connection)
        try:
            await connection.send(head, body, idle_seconds)
            await connection.read_head()
        except BaseException:
            self.take_back(origin, connection)
            raise
        return NeuronAnswer(self, origin, connection)

    def _take_idle(self, origin: Origin) -> NeuronConnection | None:
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> NeuronConnection:
        if origin.is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        tls = self._tls if origin.is_tls else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    NeuronConnection, origin.host, origin.port, ssl=tls
                )
        except TimeoutError:
            detail = f"no connection within {CONNECT_SECONDS:.0f} s"
            raise NeuronFailed(TransportFailure.CONNECT_TIMEOUT, detail) from None
        except (OSError, UnicodeError) as error:  # the latter for a name that can be none
            raise NeuronFailed(TransportFailure.REFUSED, str(error)) from None
        return connection


def _head(origin: Origin, path: str, headers: Sequence[tuple[str, str]], num_bytes: int) -> bytes:
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    lines = [f"POST {origin.base_path}{path} HTTP/1.1", f"host: {host}:{origin.port}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines.append(f"content-length: {num_bytes}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
