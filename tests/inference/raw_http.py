"""A client that sends any bytes as a body and takes any answer as it is: HTTP/1.1, by hand.

Real clients would repair, refuse or follow what the tests want to see.
"""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Sent:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    is_chunked: bool = False

    def encoded(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", "host: gateway"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.is_chunked:
            lines.append("transfer-encoding: chunked")
        elif self.body or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"content-length: {len(self.body)}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head + (_chunked(self.body) if self.is_chunked else self.body)


@dataclass(frozen=True, slots=True)
class Got:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def parse_json(data: bytes | str) -> Any:
    """Return what a client of any language would read: of Python's, `int` has a limit of digits."""
    return json.loads(data, parse_int=lambda digits: digits if len(digits) > 30 else int(digits))


class Connection:
    """Kept between requests for as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, sent: Sent) -> Got:
        """Raises OSError, EOFError if the server closes without a whole answer."""
        async with asyncio.timeout(ANSWER_SECONDS):
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(sent.encoded())
            got = await _read(reader, has_body=sent.method != "HEAD")
        if got.headers.get("connection") == "close":
            self.close()
        return got

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read(reader: asyncio.StreamReader, has_body: bool) -> Got:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head[:-4].split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    status = int(first.split(" ")[1])
    if not has_body:
        return Got(status, headers)
    if headers.get("transfer-encoding") == "chunked":
        return Got(status, headers, await _read_chunks(reader))
    return Got(status, headers, await reader.readexactly(int(headers["content-length"])))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readexactly(2)
    return b"".join(pieces)


def _chunked(body: bytes) -> bytes:
    step = max(1, len(body) // 7)
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
