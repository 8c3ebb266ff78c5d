"""The load generator counts every token once, however an answer is cut, and knows a broken one."""

import asyncio
import time
from itertools import pairwise
from typing import cast

import pytest
from clients import CHAT, MESSAGES, Answer, Asking, Measured, Pace, request_bytes, run, run_beside
from hypothesis import given
from hypothesis import strategies as st
from stub_neuron import LATER, StubProtocol

from inference.wire.anthropic.request import parse_messages
from inference.wire.openai import CHAT as OPENAI_CHAT

PACE = Pace(num_tokens=3, interval_ms=1, pad_bytes=5)


def stream_of(num_tokens: int, end: bytes) -> bytes:
    return b"".join(LATER % (at, b"xxx") for at in range(1, num_tokens + 1)) + end


@given(
    st.integers(0, 5), st.lists(st.integers(0, 900), max_size=20), st.sampled_from([CHAT, MESSAGES])
)
def test_each_token_is_counted_once_however_it_is_cut(
    num_tokens: int, cuts: list[int], asking: Asking
) -> None:
    stream, measured = stream_of(num_tokens, asking.end), Measured()
    answer = Answer(asking.end, measured)
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in pairwise(borders):
        answer.feed(stream[start:end], 1_000)
    assert answer.num_tokens == num_tokens
    assert measured.delays_ns == [1_000 - at for at in range(1, num_tokens + 1)]
    assert answer.is_whole


@given(st.integers(1, len(CHAT.end)))
def test_a_stream_without_its_end_is_not_whole(num_missing: int) -> None:
    answer = Answer(CHAT.end, Measured())
    answer.feed(stream_of(2, CHAT.end)[:-num_missing], 1_000)
    assert not answer.is_whole


@pytest.mark.parametrize(
    ("asking", "parse"), [(CHAT, OPENAI_CHAT.parse_request), (MESSAGES, parse_messages)]
)
def test_what_is_asked_is_a_legal_request_for_a_stream(asking: Asking, parse) -> None:  # type: ignore[no-untyped-def]
    head, _, body = request_bytes(asking, PACE).partition(b"\r\n\r\n")
    request = parse(body)
    assert (request.model, request.stream) == ("stub", True)
    assert b"tokens=3 interval_ms=1 bytes=5" in request.body
    assert f"content-length: {len(body)}".encode() in head


async def _serve(protocol: type[asyncio.Protocol]) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_a_run_sees_every_request_and_token() -> None:
    server, port = await _serve(StubProtocol)
    began_ns = time.monotonic_ns()
    async with server:
        measured = await run(port, CHAT, PACE, num_streams=4, num_requests=2)
    took_ns = time.monotonic_ns() - began_ns
    assert (measured.num_requests, measured.num_errors, measured.num_tokens) == (8, 0, 24)
    assert len(measured.ttft_ns) == 8
    assert all(0 < ns < took_ns for ns in (*measured.ttft_ns, *measured.delays_ns))


async def test_a_client_beside_others_asks_until_they_have_ended() -> None:
    server, port = await _serve(StubProtocol)
    async with server:
        background = asyncio.create_task(run(port, CHAT, Pace(20, 5), num_streams=2))
        measured = await run_beside(port, CHAT, Pace(2), background)
    assert background.result().num_errors == measured.num_errors == 0
    assert measured.num_requests == len(measured.ttft_ns) > 1


class Answering(asyncio.Protocol):
    """Gives every request the same answer."""

    status = b"200 OK"
    body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        head = b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n" % (self.status, len(self.body))
        self._transport.write(head + self.body)


class Refusing(Answering):
    status, body = b"503 No", stream_of(PACE.num_tokens, CHAT.end)


class LosingAToken(Answering):
    body = stream_of(PACE.num_tokens - 1, CHAT.end)


class WithoutEnd(Answering):
    body = stream_of(PACE.num_tokens, b"")


class Closing(Answering):
    def data_received(self, data: bytes) -> None:
        self._transport.close()


@pytest.mark.parametrize("protocol", [Refusing, LosingAToken, WithoutEnd, Closing])
async def test_a_request_that_is_not_answered_well_is_an_error(
    protocol: type[asyncio.Protocol],
) -> None:
    server, port = await _serve(protocol)
    async with server:
        measured = await run(port, CHAT, PACE, num_streams=1, num_requests=2)
    assert measured.num_errors == 2
