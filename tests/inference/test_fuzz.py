"""Ten thousand requests that no client sends: whatever comes, the answer is one its client knows.

No 5xx that no neuron caused, no HTML, no other dialect than the path's, no redirect; afterwards the
process is as it was, and nothing is held.
"""

import asyncio
import contextlib
import gc
import gzip
import json
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import psutil
import pytest

from inference.wire import anthropic, openai, responses
from inference.wire.errors import CortexError
from neuron_agent.errors import BadRequest, Unprocessable
from neuron_agent.wire.chat_request import parse_chat_request
from neuron_agent.wire.completion_request import parse_completion_request
from neuron_agent.wire.embeddings import parse_embedding_request
from tests.fakes.neuron import FakeNeuron, Refusal
from tests.inference.mutation import (
    ANTHROPIC,
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    VALID,
    case,
    dialect_of,
    mutated_body,
)
from tests.inference.raw_http import Connection, Got, Sent, parse_json
from tests.inference.wire.responses.event_reader import read, told
from tests.inference.world import (
    Served,
    eventually,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SEED = 20_261_121
NUM_REQUESTS = 10_000
NUM_WARM_UP = 2_000
NUM_CLIENTS = 8
GROWTH_BYTES = 16 << 20
"""Two thousand bytes kept of each request would be seen."""
LARGE_BYTES = 33 << 20
HEALTH = ("", "/health")
FAULTS = frozenset({502, 503, 529})
LAST_EVENTS = {
    RESPONSES: (b"event: response.completed\n", b"event: response.incomplete\n"),
    MESSAGES: (b"event: message_stop\n",),
}


@contextlib.asynccontextmanager
async def connected(service: Served) -> AsyncIterator[Connection]:
    connection = Connection(int(service.url.rpartition(":")[2]))
    try:
        yield connection
    finally:
        connection.close()


async def ask_all(
    service: Served, cases: Iterable[tuple[str, Sent]], faults: frozenset[int] = frozenset()
) -> list[int]:
    """Send named requests over a few connections, check each answer; return the statuses."""
    statuses: list[int] = []
    waiting = iter(cases)

    async def work() -> None:
        async with connected(service) as connection:
            for name, sent in waiting:
                try:
                    got = await connection.ask(sent)
                    check(sent, got, faults)
                except (AssertionError, EOFError, OSError, ValueError, KeyError) as error:
                    raise AssertionError(f"{name}: {sent!r:.3000}") from error
                statuses.append(got.status)

    async with asyncio.TaskGroup() as workers:
        for _ in range(NUM_CLIENTS):
            workers.create_task(work())
    return statuses


def check(sent: Sent, got: Got, faults: frozenset[int]) -> None:
    assert got.status < 500 or got.status in faults, got
    assert not 300 <= got.status < 400, got
    assert got.headers["x-request-id"], got
    is_anthropic = dialect_of(sent) == "anthropic"
    assert ("request-id" in got.headers) is is_anthropic, got
    if sent.method == "HEAD":
        assert got.body == b""
    elif got.headers["content-type"].startswith("text/event-stream"):
        assert got.status == 200
        check_stream(sent, got.body, is_broken=bool(faults))
    elif sent.target.rstrip("/") in HEALTH and got.status in (200, 503):
        assert parse_json(got.body)["status"] in ("ok", "degraded")
    else:
        check_json(got, is_anthropic)


def check_json(got: Got, is_anthropic: bool) -> None:
    assert got.headers["content-type"] == "application/json", got
    body = parse_json(got.body)
    if got.status == 200:
        assert "error" not in body or body["error"] is None, got
    elif is_anthropic:
        assert body.keys() == {"type", "error", "request_id"}, got
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
    else:
        assert body.keys() == {"error"}, got
        assert body["error"].keys() >= {"message", "type", "param", "code"}
        assert isinstance(body["error"]["code"], str)


def check_stream(sent: Sent, body: bytes, is_broken: bool) -> None:
    """A stream ends as its path's clients expect, or says that it failed."""
    assert body.endswith(b"\n\n"), body
    path = sent.target.partition("?")[0].rstrip("/")
    *_, last = body[:-2].split(b"\n\n")
    ends = LAST_EVENTS.get(path, (b"data: [DONE]",))
    errors = (b"event: error\n", b"event: response.failed\n", b'data: {"error"')
    assert last.startswith((*ends, *errors) if is_broken else ends), body
    if path == RESPONSES:
        told(read(body), is_whole=not is_broken)  # events are numbered, items open and close
    elif path == MESSAGES and not is_broken:
        assert body.count(b"event: message_start\n") == 1, body


def cases(first: int, last: int) -> Iterator[tuple[str, Sent]]:
    for index in range(first, last):
        yield f"case {index}", case(index, SEED)


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def forget(service: Served, neuron: FakeNeuron) -> None:
    """Drop what the test's own doubles keep of each request."""
    service.port.records.clear()
    neuron.requests.clear()


async def test_no_request_breaks_the_gateway(service: Served, neuron: FakeNeuron) -> None:
    statuses = await ask_all(service, cases(0, NUM_WARM_UP))
    forget(service, neuron)
    before = resident_bytes()
    statuses += await ask_all(service, cases(NUM_WARM_UP, NUM_REQUESTS))
    forget(service, neuron)
    growth = resident_bytes() - before
    assert len(statuses) == NUM_REQUESTS
    # It would prove nothing if all were refused by one check, or none at all.
    assert {200, 400, 404, 405} <= set(statuses)
    assert 0.1 < statuses.count(200) / NUM_REQUESTS < 0.8
    assert growth < GROWTH_BYTES
    await service.at_rest()
    async with service.chat() as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "turn",
    [
        {"fail_before_first_byte": Refusal(503, "device_fault", retry_after=1)},
        {"fail_before_first_byte": Refusal(429, "saturated", retry_after=1)},
        {"drop_connection_before_head": True},
        {"drop_connection_after_tokens": 2},
        {"scripted_frames": (b"data: {\n\n", b"data: [DONE]\n\n")},
        {"scripted_frames": (b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":'
                             b'{"arguments":"{}"}}]}}]}\n\n',)},
    ],
    ids=["fault", "saturated", "silent", "breaks off", "garbage", "arguments alone"],
)  # fmt: skip
async def test_no_request_breaks_it_while_the_neuron_is_broken(
    service: Served, neuron: FakeNeuron, turn: dict[str, Any]
) -> None:
    for name, value in turn.items():
        setattr(neuron.knobs, name, value)
    statuses = await ask_all(service, cases(0, 300), FAULTS | {429})
    assert FAULTS & set(statuses) or 429 in statuses or 200 in statuses
    await service.at_rest()


PARSERS = {
    CHAT: (openai.CHAT, parse_chat_request),
    COMPLETIONS: (openai.COMPLETIONS, parse_completion_request),
    EMBEDDINGS: (openai.EMBEDDINGS, parse_embedding_request),
    RESPONSES: (responses.RESPONSES, parse_chat_request),
    MESSAGES: (anthropic.MESSAGES, parse_chat_request),
}


@pytest.mark.parametrize("path", PARSERS)
def test_what_is_let_through_a_neuron_can_read(path: str) -> None:
    """It may still refuse what it alone can judge, in its own words; never what we translated."""
    operation, parse = PARSERS[path]
    num_read = num_refused = 0
    for index in range(1_000):
        draw = random.Random(f"{SEED} {index}")
        try:
            body = operation.parse_request(mutated_body(path, draw)).body
        except CortexError:
            continue
        try:
            parse(body)
            num_read += 1
        except (BadRequest, Unprocessable):
            num_refused += 1
    assert num_read > 150
    if path in (RESPONSES, MESSAGES):
        assert num_refused < 5  # numbers beyond all range, in what passes unread


def large() -> bytes:
    return b'{"model":"m","x":"' + b"x" * (LARGE_BYTES - 100) + b'"}'


def extremes() -> Iterator[tuple[str, Sent, int]]:
    json_type = (("content-type", "application/json"),)
    gzip_type = (*json_type, ("content-encoding", "gzip"))
    deep = b"[" * 100_000 + b"]" * 100_000
    objects = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    bomb = gzip.compress(bytes(LARGE_BYTES), 1)
    commas = b'{"model":"m","messages":[' + b"0," * 500_000 + b"0]}"
    for path in VALID:
        inside = json.dumps(VALID[path]).encode()[:-1] + b',"x":' + deep + b"}"
        yield "nested arrays", Sent("POST", path, json_type, deep), 400
        yield "nested arrays in a body", Sent("POST", path, json_type, inside), 400
        yield "nested objects", Sent("POST", path, json_type, objects), 400
        yield "unclosed arrays", Sent("POST", path, json_type, b"[" * 100_000), 400
        yield "33 MB", Sent("POST", path, json_type, large()), 413
        yield "33 MB in chunks", Sent("POST", path, json_type, large(), is_chunked=True), 413
        yield "33 MB unpacked", Sent("POST", path, gzip_type, bomb), 413
        yield "half a million wrong items", Sent("POST", path, json_type, commas), 400
        yield "escapes", Sent("POST", path, json_type, b'"' + b"\\u0041" * 500_000 + b'"'), 400


async def test_extremes_are_refused_for_what_they_are(service: Served, neuron: FakeNeuron) -> None:
    async with connected(service) as connection:
        for name, sent, status in extremes():
            got = await connection.ask(sent)
            assert got.status == status, (name, sent.target, got)
            check(sent, got, frozenset())
    assert neuron.requests == []
    await service.at_rest()


async def test_memory_of_large_bodies_is_given_back(service: Served, neuron: FakeNeuron) -> None:
    async def send_large() -> None:
        for path in (CHAT, *ANTHROPIC):
            await ask_all(service, [("33 MB", Sent("POST", path, (), large()))])

    await send_large()
    before = resident_bytes()
    for _ in range(3):
        await send_large()
    assert resident_bytes() - before < GROWTH_BYTES


async def test_clients_that_leave_in_their_body_leave_nothing(
    service: Served, neuron: FakeNeuron
) -> None:
    port = int(service.url.rpartition(":")[2])
    for index in range(200):
        encoded = case(index, SEED).encoded()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(encoded[: index * len(encoded) // 200])
        writer.close()
    await service.at_rest()
    await eventually(lambda: neuron.in_flight == 0)
