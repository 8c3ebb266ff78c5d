"""Clients that send too much are told so; clients that stop reading have left."""

import asyncio
import contextlib
import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from inference.client import Client, ClientLeft
from inference.wire import openai
from inference.wire.errors import UpstreamError
from inference.wire.json_body import MAX_BODY_BYTES
from tests.fakes.neuron import FakeNeuron
from tests.inference.world import (
    MODEL,
    RecordedPort,
    Served,
    a_neuron,
    a_placement,
    a_view,
    chat_body,
    eventually,
    served,
)

pytestmark = pytest.mark.slow

TOO_LARGE = bytes(40 << 20)


@pytest.fixture
async def service(neuron: FakeNeuron) -> AsyncIterator[Served]:
    view = a_view([a_neuron(neuron.url)], [a_placement()])
    async with served(RecordedPort(view)) as service:
        yield service


def pieces() -> Iterator[bytes]:
    yield from (TOO_LARGE[start : start + (1 << 20)] for start in range(0, 40 << 20, 1 << 20))


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_http_client_reads_the_413_of_a_body_past_the_limit(
    service: Served, is_chunked: bool
) -> None:
    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
        with contextlib.closing(connection):
            body = pieces() if is_chunked else TOO_LARGE
            connection.request("POST", "/v1/chat/completions", body, {}, encode_chunked=is_chunked)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())["error"]["code"]

    assert await asyncio.to_thread(ask) == (413, "request_too_large")
    record = await service.record()
    assert (record.status, record.error_code) == (413, "request_too_large")


@pytest.mark.parametrize("is_chunked", [True, False])
async def test_aiohttp_reads_the_413_of_a_body_past_the_limit(
    service: Served, is_chunked: bool
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    url = f"{service.url}/v1/chat/completions"
    headers = {} if is_chunked else {"content-length": str(len(TOO_LARGE))}
    async with service.http.post(url, data=chunks(), headers=headers) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "request_too_large"


async def test_the_openai_sdk_reads_the_413_of_a_body_past_the_limit(service: Served) -> None:
    openai = pytest.importorskip("openai")
    async with openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0
    ) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x" * len(TOO_LARGE)}]
            )
    assert raised.value.status_code == 413


async def raw_answer(service: Served, head: bytes) -> bytes:
    host, port = service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_who_asks_before_sending_is_answered_at_once(service: Served) -> None:
    length = b"content-length: %d\r\n" % (MAX_BODY_BYTES + 1)
    answer = await raw_answer(service, length + b"expect: 100-continue\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_who_says_it_sends_too_much_and_sends_nothing_is_not_waited_for(
    service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.client.DISCARD_SECONDS", 0.02)
    answer = await raw_answer(service, b"content-length: %d\r\n" % (MAX_BODY_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer


async def test_a_client_that_stops_reading_has_left(
    service: Served, neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.client.STALLED_SECONDS", 0.2)
    neuron.knobs.scripted_frames = (b"data: " + b"x" * 100_000 + b"\n\n",) * 1000
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps(chat_body(stream=True)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.settimeout(10)
        client.sendall(head % len(body) + body)
        await eventually(lambda: neuron.in_flight == 1)
        await eventually(lambda: neuron.in_flight == 0)
        assert neuron.aborted_requests == 1
        assert (await service.record()).status == 499
        await service.at_rest()
        assert await asyncio.to_thread(_is_cut, client)


def _is_cut(client: socket.socket) -> bool:
    """Whether the connection ends without an end of the answer."""
    end = b""
    try:
        while data := client.recv(1 << 20):
            end = (end + data)[-10:]
    except ConnectionResetError:
        return True
    return not end.endswith(b"0\r\n\r\n")


class DeafCycle:
    """A server's side of a request whose client reads nothing; ASGI's `send` belongs to it."""

    def __init__(self) -> None:
        self.transport = self
        self.num_aborts = 0

    def abort(self) -> None:
        self.num_aborts += 1

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()


async def test_what_a_stalled_client_has_not_read_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference.client.STALLED_SECONDS", 0.02)
    cycle = DeafCycle()
    scope = {"method": "POST", "path": "/", "headers": []}
    client = Client(scope, cycle.receive, cycle.send, openai.DIALECT)

    async def stream() -> None:
        async with client.watched():
            await client.begin_stream()
            await client.write(b"data: 1\n\n")

    with pytest.raises(ClientLeft):
        await stream()
    assert cycle.num_aborts == 1
    await client.fail(UpstreamError("gone"))  # the last frame is not waited for either
    assert cycle.num_aborts == 2


async def test_who_is_cancelled_before_the_head_was_taken_can_still_answer_with_a_status() -> None:
    sent: list[dict[str, Any]] = []
    is_open = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        await is_open.wait()
        sent.append(message)

    scope = {"method": "POST", "path": "/", "headers": []}
    client = Client(scope, DeafCycle().receive, send, openai.DIALECT)
    beginning = asyncio.ensure_future(client.begin_stream())
    await eventually(lambda: client.is_behind)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    is_open.set()
    await client.fail(UpstreamError("gone"))
    assert [message.get("status") for message in sent] == [502, None]
    assert json.loads(sent[1]["body"])["error"]["code"] == "upstream_error"


async def test_a_client_that_reads_is_not_cut_off_however_slow_the_neuron(
    service: Served, neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.client.STALLED_SECONDS", 0.03)
    neuron.knobs.token_delay_seconds = 0.1
    async with service.chat(stream=True) as answer:
        assert (await answer.read()).endswith(b"data: [DONE]\n\n")
    assert (await service.record()).status == 200
