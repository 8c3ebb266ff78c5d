"""Bodies are counted while they are held, and few are parsed at once."""

import asyncio
import gzip
import json
import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inference.client import Client
from inference.dispatch.admission import Limits
from inference.intake import MAX_PARSING, Intake
from inference.wire import anthropic, openai
from inference.wire.dialect import InferenceRequest
from inference.wire.errors import Saturated
from tests.fakes.neuron import FakeNeuron
from tests.inference.world import (
    RecordedPort,
    a_neuron,
    a_placement,
    a_view,
    chat_body,
    eventually,
    served,
)


def a_client(body: bytes, encoding: str = "") -> Client:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(_: dict[str, Any]) -> None:
        raise AssertionError("nothing is to be said")

    headers = [(b"content-encoding", encoding.encode())]
    return Client(
        {"method": "POST", "path": "/", "headers": headers}, receive, send, openai.DIALECT
    )


@given(st.lists(st.integers(0, 60), max_size=12), st.integers(0, 11))
def test_what_is_held_stays_within_the_limit_and_is_given_back(
    bodies: list[int], num_that_stay: int
) -> None:
    intake = Intake(Limits(max_held_bytes=100))
    with intake.place() as staying:
        for number, body_bytes in enumerate(bodies):
            with intake.place() as passing:
                place = staying if number < num_that_stay else passing
                before = staying.held_bytes
                try:
                    place.hold(body_bytes)
                except Saturated:
                    assert before + body_bytes > 100
                assert intake._held_bytes == staying.held_bytes + passing.held_bytes <= 100
    intake.check_integrity()


async def test_a_body_counts_as_what_it_unfolds_to() -> None:
    intake = Intake(Limits())
    body = json.dumps(chat_body(filler="x" * 10_000)).encode()
    with intake.place() as place:
        await intake.read(a_client(gzip.compress(body), "gzip"), place, openai.parse_chat)
        assert place.held_bytes == len(body)
    intake.check_integrity()


async def test_a_translation_counts_beside_what_came() -> None:
    intake = Intake(Limits())
    body = json.dumps({**chat_body(), "max_tokens": 5}).encode()
    with intake.place() as place:
        request = await intake.read(a_client(body), place, anthropic.parse_messages)
        assert place.held_bytes == len(body) + len(request.body)
    intake.check_integrity()


async def test_only_so_many_bodies_are_parsed_at_once() -> None:
    may_go_on = threading.Event()
    running: list[int] = []
    most: list[int] = []

    def parse(body: bytes) -> InferenceRequest:
        running.append(1)
        most.append(len(running))
        may_go_on.wait(10)
        running.pop()
        return InferenceRequest("m", False, body)

    intake = Intake(Limits())

    async def read() -> None:
        with intake.place() as place:
            await intake.read(a_client(gzip.compress(b"x"), "gzip"), place, parse)

    reading = [asyncio.ensure_future(read()) for _ in range(2 * MAX_PARSING)]
    await eventually(lambda: len(running) == MAX_PARSING)
    for _ in range(20):  # the others would have come by now
        await asyncio.sleep(0.001)
    may_go_on.set()
    await asyncio.gather(*reading)
    assert max(most) == MAX_PARSING


async def test_bodies_at_a_neuron_fill_the_memory_set_aside_until_they_end(
    neuron: FakeNeuron,
) -> None:
    neuron.knobs.hang = True
    port = RecordedPort(a_view([a_neuron(neuron.url)], [a_placement()]))
    async with served(port, limits=Limits(max_held_bytes=1500)) as service:
        first = asyncio.ensure_future(service.chat(filler="x" * 900).__aenter__())
        await eventually(lambda: neuron.requests_to("/v1/chat/completions"))
        async with service.chat(filler="x" * 900) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            assert (await answer.json())["error"]["code"] == "saturated"
        first.cancel()
        await service.at_rest()
        neuron.knobs.hang = False
        async with service.chat(filler="x" * 900) as answer:
            assert answer.status == 200
