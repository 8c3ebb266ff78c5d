"""Slow senders are told apart by what becomes of them; a reader that stalls reads nothing."""

import asyncio
import os

import gateway_faults
import pytest
from clients import CHAT
from gateway_sides import Process, Side
from stub_neuron import StubProtocol


class Keeping(asyncio.Protocol):
    """Lets every connection stay open, whatever comes."""


class Closing(asyncio.Protocol):
    """Closes a connection at its first byte."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.close()


async def _serve(protocol: type[asyncio.Protocol]) -> tuple[asyncio.Server, Side]:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    process = Process(server.sockets[0].getsockname()[1], os.getpid())
    return server, Side("own", process, CHAT)


@pytest.fixture(autouse=True)
def few_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_faults, "NUM_SLOW", 2)
    monkeypatch.setattr(gateway_faults, "BYTE_SECONDS", 0.001)
    monkeypatch.setattr(gateway_faults, "NUM_STALLED", 2)
    monkeypatch.setattr(gateway_faults, "NUM_OTHERS", 2)


async def test_slow_senders_that_are_cut_off_are_counted() -> None:
    server, side = await _serve(Closing)
    async with server:
        slow = await gateway_faults.slow_senders(side)
    assert slow.num_senders == slow.num_closed == 4
    assert 0 < slow.slowest_seconds < gateway_faults.PATIENCE_SECONDS


async def test_slow_senders_that_are_kept_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_faults, "PATIENCE_SECONDS", 0.1)
    server, side = await _serve(Keeping)
    async with server:
        slow = await gateway_faults.slow_senders(side)
    assert (slow.num_senders, slow.num_closed) == (4, 0)


async def test_others_are_timed_without_stalled_readers_and_beside_them() -> None:
    server, side = await _serve(StubProtocol)
    async with server:
        stalled = await gateway_faults.stalled_readers(side, seconds=0.2)
    assert len(stalled.alone_ns) == len(stalled.beside_ns) == 2 * 4
    assert stalled.bytes_each >= 0
    assert gateway_faults.describe_stalled(stalled)["others_delay_us_p50"] > 0
