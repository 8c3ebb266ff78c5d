"""The HTTP client against servers that misbehave: each fault is named, no connection is lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from inference import neuron_stream
from inference.dispatch.failover import TransportFailure
from inference.neuron_connection import MAX_HEAD_BYTES, NeuronFailed
from inference.neuron_stream import NeuronAnswer, NeuronConnections, Origin, origin_of
from tests.inference.world import eventually

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


@asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    serving = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    finally:
        serving.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


def saying(*answers: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()

    return talk


async def ask(
    pool: NeuronConnections, url: str, body: bytes = b"{}", idle_seconds: float = 5.0
) -> NeuronAnswer:
    return await pool.post(url, "/v1/chat/completions", [("x", "y")], body, idle_seconds)


async def failure_of(pool: NeuronConnections, url: str, **options: float) -> TransportFailure:
    with pytest.raises(NeuronFailed) as raised:
        await read_all(pool, url, **options)
    pool.check_integrity()
    assert pool.num_idle == 0
    return raised.value.failure


async def read_all(pool: NeuronConnections, url: str, **options: float) -> bytes:
    answer = await ask(pool, url, **options)  # type: ignore[arg-type]
    try:
        return await answer.read(1000)
    finally:
        answer.close()


async def test_an_answer_is_read_and_the_connection_kept() -> None:
    pool = NeuronConnections()
    async with server(saying(OK, OK)) as url:
        for _ in range(2):
            answer = await ask(pool, url)
            assert (answer.status, await answer.read(10)) == (200, b"hi")
            answer.close()
            assert pool.num_idle == 1
        pool.close()


async def test_an_interim_answer_is_passed_over() -> None:
    pool = NeuronConnections()
    async with server(saying(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK)) as url:
        answer = await ask(pool, url)
        assert (answer.status, "link" in answer.headers) == (200, False)
        assert await answer.read(10) == b"hi"
        answer.close()
        pool.close()


@pytest.mark.parametrize(
    "talk",
    [
        saying(b""),
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi"),
        saying(b"HTTP/1.1 200 OK\r\n\r\nno length: its end cannot be told from a death"),
        saying(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n"),
        saying(b"not HTTP at all\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * MAX_HEAD_BYTES),
        saying(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 2000),
    ],
)
async def test_a_broken_answer_is_an_error_and_never_a_short_answer(talk: Talk) -> None:
    async with server(talk) as url:
        assert await failure_of(NeuronConnections(), url) is TransportFailure.BROKEN


async def test_a_refused_connection_is_told_apart() -> None:
    async with server(saying(OK)) as url:
        pass
    assert await failure_of(NeuronConnections(), url) is TransportFailure.REFUSED


async def test_a_connection_that_does_not_come_about_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neuron_stream, "CONNECT_SECONDS", 0.01)

    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    failure = await failure_of(NeuronConnections(), "http://127.0.0.1:9")
    assert failure is TransportFailure.CONNECT_TIMEOUT


async def test_silence_ends_a_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(talk) as url:
        failure = await failure_of(NeuronConnections(), url, idle_seconds=0.02)
    assert failure is TransportFailure.SILENT


async def test_only_the_time_since_the_last_byte_counts_as_silence() -> None:
    pool = NeuronConnections()
    async with server(saying(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")) as url:
        answer = await ask(pool, url, idle_seconds=60)
        (connection,) = pool._leased
        connection._check_idle()
        assert connection.error is None
        connection._heard_at -= 61
        connection._paused = True  # we do not read: whatever it says, we cannot hear it
        connection._check_idle()
        assert connection.error is None
        connection._paused = False
        connection._check_idle()
        assert connection.error is not None
        answer.close()


async def test_a_kept_connection_that_has_closed_is_replaced_once() -> None:
    num_connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await saying(OK)(reader, writer)
        await read_request(reader)  # takes the next request and closes without a word

    pool = NeuronConnections()
    async with server(talk) as url:
        for expected in (1, 2):
            answer = await ask(pool, url)
            assert await answer.read(10) == b"hi"
            answer.close()
            assert num_connections == expected
        pool.close()


async def test_a_kept_connection_that_breaks_off_an_answer_is_not_replaced() -> None:
    pool = NeuronConnections()
    async with server(saying(OK, b"HTTP/1.1 2")) as url:
        answer = await ask(pool, url)
        await answer.read(10)
        answer.close()
        assert await failure_of(pool, url) is TransportFailure.BROKEN


async def test_what_was_not_asked_for_closes_the_connection() -> None:
    pool = NeuronConnections()
    async with server(saying(OK + OK)) as url:
        answer = await ask(pool, url)
        assert await answer.read(10) == b"hi"
        answer.close()
        await eventually(lambda: pool.num_idle == 0)


async def test_closing_early_cuts_the_connection() -> None:
    is_cut = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
        await writer.drain()
        assert await reader.read() == b""
        is_cut.set()

    pool = NeuronConnections()
    async with server(talk) as url:
        answer = await ask(pool, url)
        assert await answer.next_piece() == b"hi"
        answer.close()
        await is_cut.wait()
    pool.check_integrity()


async def test_a_large_request_is_answered_before_it_was_sent() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()

    pool = NeuronConnections()
    async with server(talk) as url:
        answer = await ask(pool, url, body=bytes(30 << 20))
        assert (answer.status, await answer.read(10)) == (413, b"no")
        answer.close()
    # Part of the request was never sent: nothing else may be.
    assert pool.num_idle == 0


def test_an_endpoint_is_taken_apart() -> None:
    assert origin_of("http://beast:13131") == Origin("beast", 13131, False, "")
    assert origin_of("https://beast/neuron/") == Origin("beast", 443, True, "/neuron")


async def test_a_neuron_killed_while_it_took_the_connection_counts_as_gone() -> None:
    def dying(listening: list[asyncio.Server]) -> Talk:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            listening[0].close()
            writer.transport.abort()

        return talk

    listening: list[asyncio.Server] = []
    talk = dying(listening)
    listening.append(await asyncio.start_server(talk, "127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening[0].sockets[0].getsockname()[1]}"
    assert await failure_of(NeuronConnections(), url) is TransportFailure.REFUSED


async def test_a_kept_connection_that_breaks_later_is_not_asked_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(neuron_stream, "SAME_MOMENT_SECONDS", 0.0)
    pool = NeuronConnections()
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await read_request(reader))
        writer.write(OK)
        asked.append(await read_request(reader))

    async with server(talk) as url:
        answer = await ask(pool, url)
        await answer.read(10)
        answer.close()
        assert await failure_of(pool, url) is TransportFailure.BROKEN
    assert len(asked) == 2


async def test_trailers_change_no_header() -> None:
    head = b"HTTP/1.1 200 OK\r\nretry-after: 1\r\ntransfer-encoding: chunked\r\n\r\n"
    trailers = b"2\r\nhi\r\n0\r\nretry-after: 99\r\nx-late: y\r\n\r\n"
    pool = NeuronConnections()
    async with server(saying(head + trailers)) as url:
        answer = await ask(pool, url)
        assert await answer.read(10) == b"hi"
        assert answer.headers["retry-after"] == "1"
        assert "x-late" not in answer.headers
        answer.close()
        pool.close()


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [("http://[::1]:13131", b"[::1]:13131"), ("http://beast:13131", b"beast:13131")],
)
def test_the_host_header_is_what_a_server_expects(endpoint: str, host: bytes) -> None:
    head = neuron_stream._head(origin_of(endpoint), "/v1", [], 0)
    assert b"\r\nhost: " + host + b"\r\n" in head


@pytest.mark.parametrize(
    "endpoint", [f"http://{'a' * 64}.example:1", "http://..:1", "http://x:99999", "http://[::1"]
)
async def test_an_address_that_can_be_none_refuses_connections(endpoint: str) -> None:
    assert await failure_of(NeuronConnections(), endpoint) is TransportFailure.REFUSED
