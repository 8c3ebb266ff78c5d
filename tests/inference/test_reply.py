"""What neurons may say that is no good answer, and what a client gets of it."""

import gzip
import json

import pytest

from tests.fakes.neuron import FakeNeuron
from tests.inference.odd_neurons import FAULT, answering, served_by, speaking
from tests.inference.world import (
    MODEL,
    RecordedPort,
    Talk,
    a_neuron,
    a_placement,
    a_view,
    served,
    talking_server,
)

pytestmark = pytest.mark.slow


async def test_a_client_that_leaves_once_it_has_the_whole_answer_was_served() -> None:
    frames = b': cortex {"finish_reason":"stop"}\n\ndata: {"choices":[]}\n\ndata: [DONE]\n\n'
    async with served_by(speaking(frames, is_ended=False)) as service:
        async with service.chat(stream=True) as answer:
            assert b"[DONE]" in await answer.content.readuntil(b"[DONE]\n\n")
            answer.close()
        record = await service.record()
        assert (record.status, record.finish_reason) == (200, "stop")


async def test_an_error_frame_that_came_in_two_pieces_is_recorded_as_one() -> None:
    first = b'data: {"choices":[]}\n\n'
    pieces = (
        first + b'data: {"error":{"message":"no /srv/models/x.bin","type":"t","code":"dev',
        b'ice_fault"}}\n\n',
    )
    async with served_by(speaking(*pieces)) as service:
        async with service.chat(stream=True) as answer:
            begun, _, ended = (await answer.read()).partition(first)
        record = await service.record()
        assert (record.status, record.error_code) == (503, "device_fault")
    error = json.loads(ended.removeprefix(b"data: "))["error"]
    assert not begun
    assert (error["code"], error["message"]) == ("device_fault", "no (path)")


async def test_a_whole_frame_before_an_error_is_given_to_the_client() -> None:
    first, second = b'data: {"choices":[]}\n\n', b'data: {"choices":[{}]}\n\n'
    error = b'data: {"error":{"message":"m","type":"t","code":"request_failed"}}\n\n'
    talk = speaking(first, second + error + b"data: [DONE]\n\n")
    async with served_by(talk) as service, service.chat(stream=True) as answer:
        body = await answer.read()
    assert body.startswith(first + second + b'data: {"error"')
    assert b"[DONE]" not in body


@pytest.mark.parametrize(
    "ending", [b"", b": x\n\n", b"data: more\n\n", b'data: {"error":{}}\n\n'], ids=repr
)
async def test_a_stream_ends_with_its_end_whatever_the_neuron_says_then(
    ending: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.relay.LINGER_SECONDS", 0.02)
    frames = b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"
    async with served_by(speaking(*frames, ending, is_ended=False)) as service:
        async with service.chat(stream=True) as answer:
            assert await answer.read() == b"".join(frames)
        assert (await service.record()).status == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("talk", "status", "code"),
    [
        (answering(200, b"<html>"), 502, "upstream_error"),
        (answering(200, b""), 502, "upstream_error"),
        (answering(200, gzip.compress(b"{}"), "content-encoding: gzip"), 502, "upstream_error"),
        (answering(204, b""), 502, "upstream_error"),
        (answering(302, b"", "location: http://elsewhere/"), 502, "upstream_error"),
        (answering(403, FAULT), 502, "upstream_error"),
        (answering(429, FAULT), 429, "device_fault"),
    ],
    ids=["HTML", "nothing", "gzip", "204", "302", "403", "429"],
)
async def test_an_answer_that_is_none_is_an_error(
    talk: Talk, status: int, code: str, stream: bool
) -> None:
    async with served_by(talk) as service:
        async with service.chat(stream=stream) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)
            assert ("retry-after" in answer.headers) == (status == 429)
        record = await service.record()
        assert (record.status, record.error_code) == (status, code)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_an_answer_that_goes_on_for_ever_is_not_collected_for_ever(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.reply.MAX_ANSWER_BYTES", 1000)
    piece = b'data: {"choices":[{"delta":{"content":"word"}}]}\n\n'
    body = {"model": MODEL, "max_tokens": 5, "input": "hi"}
    if path == "/v1/messages":
        body["messages"] = [{"role": "user", "content": "hi"}]
    async with served_by(speaking(*[piece] * 1000, is_ended=False)) as service:
        async with service.http.post(f"{service.url}{path}", json=body) as answer:
            assert answer.status == 502
        assert (await service.record()).error_code == "upstream_error"


async def test_an_answer_that_is_too_large_is_no_fault_of_the_neuron(
    neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(RecordedPort(a_view([a_neuron(neuron.url)], [a_placement()]))) as service:
        monkeypatch.setattr("inference.reply.MAX_ANSWER_BYTES", 10)
        for _ in range(4):  # a neuron that fails so often is left alone for a while
            async with service.chat(stream=False) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (400, "answer_too_large")
        monkeypatch.undo()
        async with service.chat(stream=False) as answer:
            assert answer.status == 200


async def test_who_waited_for_one_neuron_hears_no_more_of_it_once_another_is_asked(
    neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.event_stream.FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr("inference.event_stream.PERIOD_SECONDS", 0.01)
    reading = b': cortex {"progress":{"stage":"prefill","done":1,"total":4}}\n\n'
    neuron.knobs.hang = True
    async with talking_server(speaking(reading, b"data: " + FAULT + b"\n\n")) as number:
        neurons = [a_neuron(f"http://127.0.0.1:{number}"), a_neuron(neuron.url, 2, "other")]
        port = RecordedPort(a_view(neurons, [a_placement(), a_placement(12, 2)]))
        async with served(port) as service, service.chat(stream=True) as answer:
            for sign in (b'"percent":25.0', b'{"stage":"queued"}\n\n'):
                assert (await answer.content.readuntil(sign)).endswith(sign)
            neuron.knobs.hang = False
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")


async def test_a_fault_told_with_a_200_is_tried_elsewhere(neuron: FakeNeuron) -> None:
    async with talking_server(answering(200, FAULT)) as number:
        neurons = [a_neuron(f"http://127.0.0.1:{number}"), a_neuron(neuron.url, 2, "other")]
        port = RecordedPort(a_view(neurons, [a_placement(), a_placement(12, 2)]))
        async with served(port) as service, service.chat() as answer:
            assert (answer.status, answer.headers["x-cortex-neuron"]) == (200, "other")


async def test_a_client_that_leaves_after_an_end_in_two_pieces_was_served() -> None:
    pieces = (b'data: {"choices":[]}\n\n', b"data: [DO", b"NE]\n\n")
    async with served_by(speaking(*pieces, is_ended=False)) as service:
        async with service.chat(stream=True) as answer:
            await answer.content.readuntil(b"[DONE]\n\n")
            answer.close()
        assert (await service.record()).status == 200
