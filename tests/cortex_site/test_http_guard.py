"""The guard on a real uvicorn: slow and endless senders are cut off, everyone else is served."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
import uvicorn

from cortex_site import http_guard
from cortex_site.http_guard import GuardedProtocol, HeadJoiningTransport
from tests.inference.world import eventually

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
PATIENCE_SECONDS = 10.0


async def application(scope, receive, send) -> None:
    """Reads the body and says how long it was; waits before it answers /slow."""
    num_bytes, more = 0, True
    while more:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    body = str(num_bytes).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _application(scope, receive, send) -> None:
    await application(scope, receive, send)  # whichever the test has put there


@pytest.fixture
async def port(monkeypatch) -> AsyncIterator[int]:
    monkeypatch.setattr(http_guard, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(http_guard, "BODY_STEP_SECONDS", 0.2)
    config = uvicorn.Config(
        _application, port=0, http=GuardedProtocol, lifespan="off", ws="none", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    await serving


@contextlib.asynccontextmanager
async def connection(port: int):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield reader, writer
    finally:
        writer.close()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        return await reader.read(100) == b""
    return True


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


@pytest.mark.parametrize(
    "start",
    [b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"],
    ids=["nothing", "half a head", "half a body"],
)
async def test_a_request_that_stays_unfinished_is_cut_off(port, start):
    async with connection(port) as (reader, writer):
        writer.write(start)
        assert await is_closed(reader)


async def test_a_head_without_end_is_cut_off(port):
    async with connection(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                writer.write(b"y" * 65_536)
                await writer.drain()
        assert await is_closed(reader)


async def test_bytes_between_requests_do_not_keep_a_connection_open(port):
    async with connection(port) as (reader, writer):
        writer.write(GET)
        assert await answer(reader) == b"0"
        writer.write(b"\r\n")
        assert await is_closed(reader)


async def test_an_answer_may_take_longer_than_a_request(port):
    async with connection(port) as (reader, writer):
        writer.write(GET.replace(b"/ ", b"/slow "))
        assert await answer(reader) == b"0"
        writer.write(GET)
        assert await answer(reader) == b"0"


async def test_a_second_request_that_waits_its_turn_is_not_slow(port):
    async with connection(port) as (reader, writer):
        second = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
        writer.write(GET.replace(b"/ ", b"/slow ") + second + b"ab")
        assert await answer(reader) == b"0"
        writer.write(b"cde")
        assert await answer(reader) == b"5"


async def test_a_large_body_that_keeps_coming_is_taken(port, monkeypatch):
    monkeypatch.setattr(http_guard, "BODY_STEP_SECONDS", 1.0)
    async with connection(port) as (reader, writer):
        size = 4 * http_guard.BODY_STEP_BYTES
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(8):
            writer.write(b"z" * (size // 8))
            await writer.drain()
            await asyncio.sleep(0.15)  # longer than a step's deadline, in all
        assert await answer(reader) == str(size).encode()


@pytest.mark.parametrize("queued", [GET, GET * 3], ids=["one queued", "three queued"])
async def test_who_leaves_while_requests_queue_has_left_the_first_of_them(
    port, queued, monkeypatch
):
    is_running, has_left = asyncio.Event(), asyncio.Event()

    async def waiting(scope, receive, send) -> None:
        is_running.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left.set()

    monkeypatch.setattr(f"{__name__}.application", waiting)
    async with connection(port) as (_, writer):
        writer.write(GET)
        await is_running.wait()
        writer.write(queued)
        await writer.drain()
        writer.close()
        await has_left.wait()


@pytest.mark.parametrize("upgrade", [b"Upgrade: h2c", b"upgrade:h2c "])
async def test_an_offer_of_http_2_does_not_cost_a_request_its_body(port, upgrade):
    offer = b"connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAA\r\n" + upgrade
    body = b"x\r\nUpgrade: h2c\r\n"
    head = b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\ncontent-length: %d\r\n\r\n"
    async with connection(port) as (reader, writer):
        for _ in range(2):
            writer.write(head % (offer, len(body)) + body)
            assert await answer(reader) == b"%d" % len(body)


async def test_what_is_no_http_is_refused_in_json(port: int) -> None:
    async with connection(port) as (reader, writer):
        writer.write(b"hello?\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


async def test_an_answer_is_not_gone_on_with_by_a_refusal(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def streaming(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        await asyncio.Event().wait()

    monkeypatch.setattr(f"{__name__}.application", streaming)
    async with connection(port) as (reader, writer):
        writer.write(GET)
        assert b"200 OK" in await reader.readuntil(b"piece\r\n")
        writer.write(b"hello?\r\n\r\n")
        assert await is_closed(reader)


class WrittenTransport(asyncio.Transport):
    """Keeps what is written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.has_ended = False

    def write(self, data) -> None:
        assert not self.has_ended
        self.pieces.append(data)

    def is_closing(self) -> bool:
        return self.has_ended

    def close(self) -> None:
        self.has_ended = True

    def abort(self) -> None:
        self.has_ended = True


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


async def test_a_head_goes_out_with_what_follows_it_at_once() -> None:
    transport = WrittenTransport()
    joining = HeadJoiningTransport(transport, asyncio.get_running_loop())
    joining.write(HEAD)
    joining.write(b"first")
    joining.write(b"second")
    await asyncio.sleep(0)
    assert transport.pieces == [HEAD + b"first", b"second"]


async def test_a_head_that_nothing_follows_goes_out_alone_in_the_same_turn() -> None:
    transport = WrittenTransport()
    joining = HeadJoiningTransport(transport, asyncio.get_running_loop())
    joining.write(HEAD)
    await asyncio.sleep(0)
    assert transport.pieces == [HEAD]
    joining.write(HEAD)
    joining.close()
    assert transport.pieces == [HEAD, HEAD]


async def test_who_is_told_to_go_on_is_told_at_once() -> None:
    transport = WrittenTransport()
    joining = HeadJoiningTransport(transport, asyncio.get_running_loop())
    joining.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert len(transport.pieces) == 1


async def test_a_connection_that_was_cut_takes_no_head() -> None:
    transport = WrittenTransport()
    joining = HeadJoiningTransport(transport, asyncio.get_running_loop())
    joining.write(HEAD)
    joining.abort()
    await asyncio.sleep(0)
    assert transport.pieces == []
