"""Neurons that say exactly what a test wants, fit or not: raw answers on a port."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.inference.world import (
    RecordedPort,
    Served,
    Talk,
    a_neuron,
    a_placement,
    a_view,
    served,
    talking_server,
)

FAULT = b'{"error":{"message":"m","type":"api_error","code":"device_fault"}}'


def speaking(*pieces: bytes, is_ended: bool = True) -> Talk:
    """A neuron that streams these pieces, with a pause after each, and ends its answer or not."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n" if is_ended else b"")
        await asyncio.Event().wait()

    return talk


def answering(status: int, body: bytes, *headers: str) -> Talk:
    """A neuron that gives this answer to everything."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {status} X", *headers, f"content-length: {len(body)}", "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await asyncio.Event().wait()

    return talk


@contextlib.asynccontextmanager
async def served_by(talk: Talk) -> AsyncIterator[Served]:
    async with talking_server(talk) as number:
        port = RecordedPort(a_view([a_neuron(f"http://127.0.0.1:{number}")], [a_placement()]))
        async with served(port) as service:
            yield service
