"""The least a relay can do: pumps bytes between a client and the stub. The floor of a benchmark.

One connection there for each one here, no parsing at all, on uvloop. What a gateway costs beyond
this is what it is worth: finding the placement, counting, recording, cancelling.

    python bench/bare_relay.py PORT STUB_PORT
"""

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One end of a pair of connections: what it receives goes out at the other end."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def join(self, other: "Side") -> None:
        self.other, other.other = other, self
        for data in self._early:
            self.data_received(data)


class ClientSide(Side):
    """The end that a client opened."""

    stub_port = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._opening = asyncio.get_running_loop().create_task(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, other = await loop.create_connection(Side, "127.0.0.1", self.stub_port)
        self.join(other)


async def main(port: int, stub_port: int) -> None:
    ClientSide.stub_port = stub_port
    loop = asyncio.get_running_loop()
    server = await loop.create_server(ClientSide, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
