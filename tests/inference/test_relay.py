"""Streams through a real server to a fake neuron and back: bytes, times, departures, faults."""

import asyncio
import contextlib
import json
from math import inf
from random import Random

import aiohttp
import pytest

from tests.fakes.neuron import FakeNeuron, Refusal
from tests.inference.world import (
    MODEL,
    RecordedPort,
    Served,
    a_neuron,
    a_placement,
    a_view,
    eventually,
    served,
)

pytestmark = pytest.mark.slow


def frames_of(body: bytes) -> list[bytes]:
    return [frame for frame in body.split(b"\n\n") if frame]


async def test_a_stream_arrives_without_control_frames(service: Served, neuron: FakeNeuron) -> None:
    async with service.chat(stream=True, stream_options={"include_usage": True}) as answer:
        body = await answer.read()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-cortex-neuron"] == "beast"
        assert answer.headers["x-cortex-placement"] == "11"
        assert answer.headers["x-cortex-cold-start"] == "false"
    frames = frames_of(body)
    assert frames[-1] == b"data: [DONE]"
    assert b": cortex {" not in body
    chunks = [json.loads(frame.removeprefix(b"data: ")) for frame in frames[:-1]]
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(said) == "".join(f"word{n} " for n in range(8))
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    (asked,) = neuron.requests_to("/v1/chat/completions")
    assert asked.headers["x-cortex-frames"] == "1"


async def test_a_stream_leaves_a_record(service: Served, neuron: FakeNeuron) -> None:
    neuron.knobs.cached_tokens = 1
    headers = {"x-request-id": "my-id.1", "user-agent": "tester/1"}
    url = f"{service.url}/v1/chat/completions"
    body = {"model": "local/large", "messages": [{"role": "user", "content": "a b"}]}
    async with service.http.post(url, json={**body, "stream": True}, headers=headers) as answer:
        assert answer.headers["x-request-id"] == "my-id.1"
        await answer.read()
    record = await service.record()
    assert (record.request_id, record.user_agent) == ("my-id.1", "tester/1")
    assert (record.model, record.requested_model) == (MODEL, "local/large")
    assert (record.neuron, record.placement, record.dialect) == ("beast", 11, "chat")
    assert (record.status, record.finish_reason, record.error_code) == (200, "stop", "")
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (2, 8, 1)
    assert (record.queue_ms, record.prefill_ms, record.decode_ms) == (0.5, 2.0, 8.0)
    assert record.ttft_seconds is not None
    assert 0 < record.ttft_seconds <= record.latency_seconds
    assert record.tokens_per_second is not None
    assert record.streaming
    assert not record.cold_start
    assert record.client_address == "127.0.0.1"
    await eventually(lambda: 11 in service.port.used)


async def test_a_whole_answer_leaves_a_record(service: Served) -> None:
    async with service.chat() as answer:
        body = await answer.json()
        assert answer.status == 200
        assert answer.headers["x-cortex-placement"] == "11"
    assert body["choices"][0]["message"]["content"].startswith("word0")
    record = await service.record()
    assert (record.status, record.finish_reason, record.streaming) == (200, "stop", False)
    assert (record.prompt_tokens, record.completion_tokens) == (2, 8)
    assert record.ttft_seconds is not None
    assert 0 < record.ttft_seconds <= record.latency_seconds
    assert record.tokens_per_second is not None


async def test_the_neuron_gets_the_body_as_it_came(service: Served, neuron: FakeNeuron) -> None:
    raw = b'{"model":  "org/model" , "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]}'
    async with service.http.post(f"{service.url}/v1/chat/completions", data=raw) as answer:
        assert answer.status == 200
    assert neuron.requests_to("/v1/chat/completions")[0].body == raw


async def test_an_alias_is_replaced_and_nothing_else(service: Served, neuron: FakeNeuron) -> None:
    raw = b'{"model":"local/large","messages":[{"role":"user","content":"\\u00e9"}],"x":1.50}'
    async with service.http.post(f"{service.url}/v1/chat/completions", data=raw) as answer:
        assert answer.status == 200
    sent = neuron.requests_to("/v1/chat/completions")[0].body
    assert sent == raw.replace(b"local/large", MODEL.encode())


async def test_a_connection_is_used_again(service: Served, neuron: FakeNeuron) -> None:
    for _ in range(3):
        async with service.chat(stream=True) as answer:
            await answer.read()
        await service.at_rest()
    assert service.gateway._connections.num_idle == 1


async def test_a_pooled_connection_that_was_closed_is_replaced(
    service: Served, neuron: FakeNeuron
) -> None:
    async with service.chat() as answer:
        assert answer.status == 200
    neuron.stop()
    neuron.start()
    async with service.chat() as answer:
        assert answer.status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_frees_the_neuron(
    service: Served, neuron: FakeNeuron, stream: bool
) -> None:
    neuron.knobs.token_delay_seconds = inf
    asking = asyncio.ensure_future(service.chat(stream=stream).__aenter__())
    await eventually(lambda: neuron.in_flight == 1)
    if stream:
        answer = await asking
        assert await answer.content.readany()
        answer.close()
    else:
        asking.cancel()
    await eventually(lambda: neuron.in_flight == 0)
    await service.at_rest()
    assert neuron.aborted_requests == 1
    record = await service.record()
    assert record.status == 499
    assert len(service.port.records) == 1


async def test_a_client_that_leaves_before_the_head_frees_the_neuron(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.hang = True
    asking = asyncio.ensure_future(service.chat(stream=True).__aenter__())
    await eventually(lambda: neuron.requests_to("/v1/chat/completions"))
    asking.cancel()
    assert (await service.record()).status == 499
    await service.at_rest()
    neuron.knobs.hang = False
    await eventually(lambda: neuron.in_flight == 0)


async def test_a_neuron_that_dies_in_mid_stream_ends_it_with_an_error_frame(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.drop_connection_after_tokens = 3
    async with service.chat(stream=True) as answer:
        assert answer.status == 200
        frames = frames_of(await answer.read())
    error = json.loads(frames[-1].removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_error"
    assert len(frames) == 4
    record = await service.record()
    assert (record.status, record.error_code) == (502, "upstream_error")


async def test_an_answer_that_broke_off_is_not_begun_again_elsewhere(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.drop_connection_after_tokens = 3
    with FakeNeuron() as other:
        other.place(MODEL)
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        service.show(a_view(neurons, [a_placement(), a_placement(id=12, neuron_id=2)]))
        async with service.chat(stream=True) as answer:
            frames = frames_of(await answer.read())
        assert len(frames) == 4
        assert not other.requests


async def test_a_stream_that_gave_only_keep_alives_is_begun_again_elsewhere(
    service: Served, neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.event_stream.FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr("inference.event_stream.PERIOD_SECONDS", 0.01)
    neuron.knobs.first_token_delay_seconds = 0.05
    neuron.knobs.frame_interval_seconds = 0.01
    neuron.knobs.drop_connection_after_tokens = 0
    with FakeNeuron() as other:
        other.place(MODEL)
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        service.show(a_view(neurons, [a_placement(), a_placement(id=12, neuron_id=2)]))
        async with service.chat(stream=True) as answer:
            body = await answer.read()
        assert body.startswith(b": cortex-progress {")
        assert body.endswith(b"data: [DONE]\n\n")
        assert (await service.record()).neuron == "other"


async def test_a_neuron_that_is_gone_is_503_at_once_and_everyone_learns_it(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.stop()
    async with service.chat(stream=True) as answer:
        assert answer.status == 503
        assert 1 <= int(answer.headers["retry-after"]) <= 300
        error = (await answer.json())["error"]
    assert error["code"] == "neuron_unreachable"
    await eventually(lambda: service.port.unreachable == [1])
    async with service.chat() as answer:  # the breaker is open: no attempt, the same answer
        assert (answer.status, (await answer.json())["error"]["code"]) == (
            503,
            "neuron_unreachable",
        )


async def test_a_refused_connection_is_tried_elsewhere(service: Served, neuron: FakeNeuron) -> None:
    with FakeNeuron() as other:
        other.place(MODEL)
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        service.show(a_view(neurons, [a_placement(), a_placement(id=12, neuron_id=2)]))
        neuron.stop()
        async with service.chat() as answer:
            assert answer.status == 200
            assert answer.headers["x-cortex-neuron"] == "other"
    assert (await service.record()).neuron == "other"


async def test_a_device_fault_is_tried_elsewhere_once_per_placement(
    service: Served, neuron: FakeNeuron
) -> None:
    with FakeNeuron() as other:
        other.place(MODEL)
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        service.show(a_view(neurons, [a_placement(), a_placement(id=12, neuron_id=2)]))
        for each in (neuron, other):
            each.knobs.fail_before_first_byte = Refusal(503, "device_fault", retry_after=7)
        async with service.chat(stream=True) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "7")
            assert (await answer.json())["error"]["code"] == "device_fault"
        assert len(neuron.requests_to("/v1/chat/completions")) == 1
        assert len(other.requests_to("/v1/chat/completions")) == 1


async def test_a_broken_connection_before_the_first_byte_is_502(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.drop_connection_before_head = True
    async with service.chat(stream=True) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "upstream_error"


async def test_a_neurons_400_reaches_the_client_in_its_own_words(
    service: Served, neuron: FakeNeuron
) -> None:
    message = f"{MODEL} takes 10 tokens; see /srv/models/secret/config.json"
    neuron.knobs.fail_before_first_byte = Refusal(400, "context_length_exceeded", message)
    async with service.chat(model="local/large") as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"] == "local/large takes 10 tokens; see (path)"
    record = await service.record()
    assert (record.status, record.error_code) == (400, "context_length_exceeded")


async def test_a_token_the_neuron_does_not_take_is_not_the_clients_fault(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.token = "right"
    async with service.chat() as answer:
        assert answer.status == 502
    service.show(a_view([a_neuron(neuron.url, token="right")], [a_placement()]))
    async with service.chat() as answer:
        assert answer.status == 200


async def test_a_long_prefill_is_kept_alive_with_comments(
    service: Served, neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.event_stream.FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr("inference.event_stream.PERIOD_SECONDS", 0.01)
    neuron.knobs.first_token_delay_seconds = 0.1
    neuron.knobs.frame_interval_seconds = 0.02
    async with service.chat(stream=True) as answer:
        body = await answer.read()
    assert body.startswith(b": cortex-progress {")
    assert b": cortex {" not in body
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_does_not_read_holds_the_neuron_back(
    service: Served, neuron: FakeNeuron
) -> None:
    piece = b"data: " + b"x" * 100_000 + b"\n\n"
    neuron.knobs.scripted_frames = (piece,) * 400 + (b"data: [DONE]\n\n",)
    async with service.chat(stream=True) as answer:
        (connection,) = service.gateway._connections._leased
        await eventually(lambda: not connection._transport.is_reading())
        body = await answer.read()
    assert body == piece * 400 + b"data: [DONE]\n\n"


async def test_the_openai_sdk_reads_a_stream(service: Served) -> None:
    openai = pytest.importorskip("openai")
    client = openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    async with client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[0].choices[0].delta.content == "word0 "


async def test_many_streams_at_once_each_get_their_own_answer(
    service: Served, neuron: FakeNeuron
) -> None:
    async def ask(words: int) -> int:
        message = {"role": "user", "content": "w " * words}
        async with service.chat(messages=[message]) as answer:
            usage = (await answer.json())["usage"]
            return int(usage["prompt_tokens"])

    assert await asyncio.gather(*(ask(n) for n in range(1, 41))) == list(range(1, 41))


async def test_a_storm_of_clients_that_leave_at_any_moment_leaves_nothing_behind(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.token_delay_seconds = 0.002
    random = Random(7)

    async def ask_and_leave(after_seconds: float, stream: bool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_seconds), service.chat(stream=stream) as answer:
                await answer.read()

    leaving = [ask_and_leave(random.uniform(0.001, 0.15), n % 2 == 0) for n in range(60)]
    await asyncio.gather(*leaving)
    await service.at_rest()
    await eventually(lambda: neuron.in_flight == 0)
    # A client may leave before its request was sent; all others are recorded once.
    await service.gateway.recorder.flush()
    ids = [record.request_id for record in service.port.records]
    assert len(ids) == len(set(ids))
    assert {record.status for record in service.port.records} <= {200, 499}
    assert len(ids) >= len(neuron.requests_to("/v1/chat/completions"))


async def test_aiohttp_sees_a_clean_end(service: Served) -> None:
    async with service.chat(stream=True) as answer:
        assert isinstance(answer, aiohttp.ClientResponse)
        await answer.read()
        assert answer.content.at_eof()


async def test_requests_that_were_at_a_neuron_when_it_died_are_one_report_and_one_failure(
    service: Served, neuron: FakeNeuron
) -> None:
    async def ask() -> int:
        async with service.chat() as answer:
            return answer.status

    neuron.knobs.hang = True
    asking = [asyncio.ensure_future(ask()) for _ in range(8)]
    await eventually(lambda: len(neuron.requests_to("/v1/chat/completions")) == 8)
    neuron.stop()
    assert set(await asyncio.gather(*asking)) == {503}
    await eventually(lambda: service.port.unreachable)
    assert service.port.unreachable == [1]
    assert service.gateway.fleet._breaker(1).num_failures == 1


async def test_a_refusal_that_says_nothing_of_the_fleet_reads_it_not_again(
    neuron: FakeNeuron,
) -> None:
    reads: list[None] = []

    class Counting(RecordedPort):
        async def read_view(self):  # type: ignore[no-untyped-def]
            reads.append(None)
            return self.view

    neuron.knobs.fail_before_first_byte = Refusal(400, "invalid_request")
    port = Counting(a_view([a_neuron(neuron.url)], [a_placement()]))
    async with served(port, poll_seconds=3600) as service:
        for _ in range(20):
            async with service.chat() as answer:
                assert answer.status == 400
        assert not service.gateway.fleet._wanted.is_set()
        assert len(reads) == 1
