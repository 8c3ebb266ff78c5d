"""Signs of life: when they are due, what they say, and never beside another writer."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from inference import event_stream
from inference.client import Client
from inference.event_stream import EventStream
from inference.request_facts import RequestFacts
from inference.wire import openai
from tests.inference.world import eventually

SIGN = b': cortex-progress {"stage":"queued"}\n\n'


class Wire:
    """What a client gets, and a way to keep the server from taking more."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.num_heads = 0
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def send(self, message: dict[str, Any]) -> None:
        await self.is_open.wait()
        if message["type"] == "http.response.start":
            self.num_heads += 1
        else:
            self.bodies.append(message["body"])

    async def receive(self) -> dict[str, Any]:
        raise AssertionError("nothing is to be read")


class Opening:
    """An encoder that has something to say at once."""

    def open(self) -> bytes:
        return b"opening\n\n"

    def feed(self, event: object) -> bytes:
        raise AssertionError

    def idle(self) -> bytes:
        return b"idle\n\n"

    def fail(self, error: object, request_id: str) -> bytes:
        raise AssertionError


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    monkeypatch.setattr(event_stream, "FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr(event_stream, "PERIOD_SECONDS", 0.01)
    return Wire()


def a_stream(wire: Wire, encoder: Any = None) -> EventStream:
    scope = {"method": "POST", "path": "/", "headers": []}
    client = Client(scope, wire.receive, wire.send, openai.DIALECT)
    facts = RequestFacts("req-1", "chat", datetime(2026, 1, 1, tzinfo=UTC), began=0.0)
    return EventStream(client, openai.DIALECT, facts, encoder)


async def test_who_waits_hears_of_it_again_and_again(wire: Wire) -> None:
    stream = a_stream(wire)
    with stream.kept_alive():
        await eventually(lambda: len(wire.bodies) >= 3)
    assert wire.bodies[:3] == [SIGN] * 3
    assert wire.num_heads == 1


async def test_a_sign_says_where_the_request_is_at_that_time(wire: Wire) -> None:
    stream = a_stream(wire)
    stream.where = lambda: {"stage": "prefill", "percent": 50.0}
    with stream.kept_alive():
        await eventually(lambda: wire.bodies)
    assert wire.bodies[0] == b': cortex-progress {"stage":"prefill","percent":50.0}\n\n'


async def test_an_encoders_opening_goes_before_the_first_sign_and_goes_once(wire: Wire) -> None:
    stream = a_stream(wire, Opening())
    with stream.kept_alive():
        await eventually(lambda: len(wire.bodies) >= 2)
        await stream.write(b"data: 1\n\n")
    assert wire.bodies[:2] == [b"opening\n\n", SIGN]
    assert wire.bodies.count(b"opening\n\n") == 1


async def test_a_writer_waits_for_the_sign_that_is_being_written(wire: Wire) -> None:
    stream = a_stream(wire)
    wire.is_open.clear()
    with stream.kept_alive():
        await eventually(lambda: stream._sign is not None)
        writing = asyncio.ensure_future(stream.write(b"data: 1\n\n"))
        await asyncio.sleep(0)
        wire.is_open.set()
        await writing
    assert wire.bodies[:2] == [SIGN, b"data: 1\n\n"]
    assert wire.num_heads == 1


async def test_nothing_is_said_after_the_end(wire: Wire) -> None:
    stream = a_stream(wire)
    with stream.kept_alive():
        await stream.end(b"data: [DONE]\n\n")
    await asyncio.sleep(0.03)  # several periods
    assert wire.bodies[-1] == b"data: [DONE]\n\n"


async def test_now_and_then_a_sign_is_an_event(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "SIGNS_PER_EVENT", 3)
    stream = a_stream(wire, Opening())
    with stream.kept_alive():
        await eventually(lambda: len(wire.bodies) >= 7)
    assert wire.bodies[1:7] == [SIGN, SIGN, SIGN + b"idle\n\n"] * 2
