"""Every dialect through a real server to a fake neuron: answers, errors, waiting, failing over."""

import asyncio
import json
from math import inf
from typing import Any

import pytest

from fleet.planner.phases import NeuronPhase, PlacementPhase
from tests.fakes.neuron import FakeNeuron, Refusal
from tests.inference.world import (
    MODEL,
    Served,
    a_model,
    a_neuron,
    a_placement,
    a_view,
    eventually,
)

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "one two three"}]
CHAT, MESSAGE, RESPONSE = "/v1/chat/completions", "/v1/messages", "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    MESSAGE: {"messages": MESSAGES, "max_tokens": 100},
    RESPONSE: {"input": "one two three"},
}
NAMES = {CHAT: "chat", MESSAGE: "messages", RESPONSE: "responses"}
SAID = "".join(f"word{n} " for n in range(8))
ALL = pytest.mark.parametrize("path", list(BODIES))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life come at once, and often."""
    monkeypatch.setattr("inference.event_stream.FIRST_WORD_SECONDS", 0.0)
    monkeypatch.setattr("inference.event_stream.PERIOD_SECONDS", 0.01)


def ask(service: Served, path: str, **fields: Any) -> Any:
    body = {"model": MODEL, **BODIES[path], **fields}
    return service.http.post(f"{service.url}{path}", json=body)


def payloads(stream: bytes) -> list[dict[str, Any]]:
    """Return what the data lines say."""
    lines = [line for line in stream.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


def text_of_stream(path: str, stream: bytes) -> str:
    told = payloads(stream)
    match path:
        case "/v1/messages":
            deltas = [each["delta"] for each in told if each["type"] == "content_block_delta"]
            return "".join(delta["text"] for delta in deltas)
        case "/v1/responses":
            is_text = "response.output_text.delta"
            return "".join(each["delta"] for each in told if each["type"] == is_text)
        case _:
            choices = [choice for each in told for choice in each["choices"]]
            return "".join(choice["delta"].get("content") or "" for choice in choices)


def text_of(path: str, answer: dict[str, Any]) -> str:
    match path:
        case "/v1/messages":
            return "".join(block["text"] for block in answer["content"])
        case "/v1/responses":
            return "".join(p["text"] for item in answer["output"] for p in item["content"])
        case _:
            return str(answer["choices"][0]["message"]["content"])


def is_at_its_end(path: str, stream: bytes) -> bool:
    last = {
        CHAT: b"data: [DONE]\n\n",
        MESSAGE: b'data: {"type":"message_stop"}\n\n',
    }
    if path in last:
        return stream.endswith(last[path])
    return bool(payloads(stream)[-1]["type"] == "response.completed")


@ALL
async def test_an_answer_at_once(service: Served, path: str) -> None:
    async with ask(service, path) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-cortex-neuron"] == "beast"
        assert ("request-id" in answer.headers) == (path == MESSAGE)
        assert text_of(path, await answer.json()) == SAID
    record = await service.record()
    assert (record.dialect, record.status, record.streaming) == (NAMES[path], 200, False)
    assert (record.prompt_tokens, record.completion_tokens) == (3, 8)
    assert record.finish_reason == "stop"


@ALL
async def test_an_answer_as_it_comes(service: Served, path: str) -> None:
    async with ask(service, path, stream=True, model="local/large") as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = await answer.read()
    assert text_of_stream(path, stream) == SAID
    assert is_at_its_end(path, stream)
    assert b": cortex {" not in stream
    record = await service.record()
    assert (record.dialect, record.status, record.streaming) == (NAMES[path], 200, True)
    assert (record.model, record.requested_model) == (MODEL, "local/large")
    assert (record.prompt_tokens, record.completion_tokens) == (3, 8)
    assert record.ttft_seconds is not None


async def test_a_response_begins_with_its_beginning(service: Served) -> None:
    async with ask(service, RESPONSE, stream=True) as answer:
        told = payloads(await answer.read())
    assert [each["type"] for each in told[:2]] == ["response.created", "response.in_progress"]
    assert [each["sequence_number"] for each in told] == list(range(len(told)))


def error_kind(path: str, body: dict[str, Any]) -> str:
    """Return the error's code, of Anthropic's its type; it has the dialect's shape."""
    if path.startswith(MESSAGE):
        assert body["type"] == "error"
        assert body["request_id"]
        return str(body["error"]["type"])
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    return str(body["error"]["code"])


@pytest.mark.parametrize(
    ("path", "fields", "status", "kind"),
    [
        (CHAT, {"model": "no/such"}, 404, "model_not_found"),
        (MESSAGE, {"model": "no/such"}, 404, "not_found_error"),
        (RESPONSE, {"model": "no/such"}, 404, "model_not_found"),
        (CHAT, {"messages": 3}, 400, "invalid_request"),
        (MESSAGE, {"messages": 3}, 400, "invalid_request_error"),
        (RESPONSE, {"input": 3}, 400, "invalid_request"),
        (MESSAGE, {"max_tokens": None}, 400, "invalid_request_error"),
        (RESPONSE, {"previous_response_id": "resp_1"}, 400, "invalid_request"),
    ],
)
async def test_a_bad_request_is_refused_in_its_dialect(
    service: Served, neuron: FakeNeuron, path: str, fields: dict[str, Any], status: int, kind: str
) -> None:
    async with ask(service, path, **fields) as answer:
        assert (answer.status, error_kind(path, await answer.json())) == (status, kind)
    assert not neuron.requests_to(CHAT)
    assert (await service.record()).status == status


@ALL
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_of_the_neuron_is_told_in_the_dialect(
    service: Served, neuron: FakeNeuron, path: str, stream: bool
) -> None:
    refusal = Refusal(400, "context_length_exceeded", "prompt is too long: 9 tokens > 8 maximum")
    neuron.knobs.fail_before_first_byte = refusal
    async with ask(service, path, stream=stream) as answer:
        body = await answer.json()
        assert answer.status == 400
    assert body["error"]["message"] == refusal.message
    kind = "invalid_request_error" if path == MESSAGE else "context_length_exceeded"
    assert error_kind(path, body) == kind


@ALL
async def test_a_busy_fleet_says_when_to_come_again(
    service: Served, neuron: FakeNeuron, path: str
) -> None:
    neuron.knobs.fail_before_first_byte = Refusal(503, "saturated", retry_after=7)
    async with ask(service, path) as answer:
        assert answer.status == (529 if path == MESSAGE else 503)
        assert answer.headers["retry-after"] == "7"
        assert error_kind(path, await answer.json()) in ("overloaded_error", "saturated")


@ALL
@pytest.mark.usefixtures("impatient")
async def test_who_waits_for_a_load_and_a_prefill_is_told(
    service: Served, neuron: FakeNeuron, path: str
) -> None:
    neuron.knobs.first_token_delay_seconds = 0.1
    neuron.knobs.frame_interval_seconds = 0.02
    loading = a_placement(phase=PlacementPhase.LOADING, stage="reading", percent=40.0)
    service.show(a_view([a_neuron(neuron.url)], [loading]))
    async with ask(service, path, stream=True) as answer:
        stream = b""
        while b'"stage":"reading","percent":40.0' not in stream:
            stream += await answer.content.readany()
        service.show(a_view([a_neuron(neuron.url)], [a_placement()]))
        stream += await answer.read()
    assert b': cortex-progress {"stage":"queued"}' in stream
    assert (b"event: ping" in stream) == (path == MESSAGE)
    assert text_of_stream(path, stream) == SAID
    assert is_at_its_end(path, stream)


@ALL
@pytest.mark.usefixtures("impatient")
async def test_a_stream_that_fails_after_its_head_does_not_look_whole(
    service: Served, neuron: FakeNeuron, path: str
) -> None:
    neuron.knobs.drop_connection_after_tokens = 2
    async with ask(service, path, stream=True) as answer:
        stream = await answer.read()
    assert text_of_stream(path, stream.replace(b'data: {"error"', b"")) in ("", "word0 word1 ")
    assert not is_at_its_end(path, stream)
    last = payloads(stream)[-1]
    assert (
        last.get("type") in {CHAT: [None], MESSAGE: ["error"], RESPONSE: ["response.failed"]}[path]
    )
    assert (await service.record()).status == 502


@ALL
@pytest.mark.parametrize("stream", [True, False])
async def test_a_neuron_that_breaks_before_its_first_token_is_replaced(
    service: Served, neuron: FakeNeuron, path: str, stream: bool
) -> None:
    neuron.knobs.drop_connection_before_head = True
    with FakeNeuron() as other:
        other.place(MODEL)
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        service.show(a_view(neurons, [a_placement(), a_placement(id=12, neuron_id=2)]))
        async with ask(service, path, stream=stream) as answer:
            body = await answer.read()
    said = text_of_stream(path, body) if stream else text_of(path, json.loads(body))
    assert said == SAID
    assert (await service.record()).neuron == "other"


@ALL
@pytest.mark.parametrize("stream", [True, False])
async def test_a_fault_told_before_the_first_token_is_no_end(
    service: Served, neuron: FakeNeuron, path: str, stream: bool
) -> None:
    fault = {"message": "the device broke", "type": "api_error", "code": "device_fault"}
    neuron.knobs.scripted_frames = (
        b"data: " + json.dumps({"error": fault}, separators=(",", ":")).encode() + b"\n\n",
    )
    with FakeNeuron() as other:
        other.place(MODEL)
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        service.show(a_view(neurons, [a_placement(), a_placement(id=12, neuron_id=2)]))
        if path == CHAT and not stream:
            return  # such an answer has its status
        async with ask(service, path, stream=stream) as answer:
            body = await answer.read()
    said = text_of_stream(path, body) if stream else text_of(path, json.loads(body))
    assert said == SAID


@ALL
async def test_a_caller_ends_its_request_by_its_id(
    service: Served, neuron: FakeNeuron, path: str
) -> None:
    neuron.knobs.first_token_delay_seconds = inf
    url = f"{service.url}{path}"
    headers = {"x-request-id": "mine", "authorization": "Bearer me"}
    body = {"model": MODEL, **BODIES[path]}
    asking = asyncio.ensure_future(service.http.post(url, json=body, headers=headers))
    await eventually(lambda: neuron.in_flight == 1)
    of_others = f"{service.url}/v1/requests/mine"
    async with service.http.delete(of_others) as answer:
        assert answer.status == 404
    async with service.http.delete(of_others, headers=headers) as answer:
        assert (answer.status, (await answer.json())["cancelled"]) == (200, True)
    async with await asking as answer:
        assert answer.status == 409
    await eventually(lambda: neuron.in_flight == 0)
    record = await service.record()
    assert (record.status, record.error_code) == (409, "request_cancelled")


# --- counting tokens -----------------------------------------------------------------------------


def count(service: Served, **fields: Any) -> Any:
    body = {"model": MODEL, "messages": MESSAGES, **fields}
    return service.http.post(f"{service.url}/v1/messages/count_tokens?beta=true", json=body)


async def test_tokens_are_counted_also_of_a_model_that_is_not_loaded(
    service: Served, neuron: FakeNeuron
) -> None:
    service.show(a_view([a_neuron(neuron.url)], models=[a_model(source="org/other")]))
    async with count(service) as answer:
        assert (answer.status, await answer.json()) == (200, {"input_tokens": 3})
    (asked,) = neuron.requests_to("/tokenize")
    told = json.loads(asked.body)
    assert (told["model"], told["source"], told["return_tokens"]) == (MODEL, "org/other", False)
    assert not service.port.demand
    assert not service.port.records


async def test_another_neuron_counts_where_the_first_does_not_answer(
    service: Served, neuron: FakeNeuron
) -> None:
    with FakeNeuron() as other:
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        feasible = a_model(feasible_on=("beast", "other"))
        service.show(a_view(neurons, [a_placement()], models=[feasible]))
        neuron.stop()
        async with count(service) as answer:
            assert (answer.status, await answer.json()) == (200, {"input_tokens": 3})


async def test_a_neuron_of_which_nothing_is_known_yet_counts(
    service: Served, neuron: FakeNeuron
) -> None:
    unknown = a_neuron(neuron.url, phase=NeuronPhase.UNKNOWN, dispatchable=False)
    service.show(a_view([unknown], models=[a_model(feasible_on=())]))
    async with count(service) as answer:
        assert (answer.status, await answer.json()) == (200, {"input_tokens": 3})


async def test_another_neuron_counts_where_the_first_has_no_files(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.knobs.refuse_tokenize = Refusal(422, "repo_fetch_failed")
    with FakeNeuron() as other:
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        feasible = a_model(feasible_on=("beast", "other"))
        service.show(a_view(neurons, [a_placement()], models=[feasible]))
        async with count(service) as answer:
            assert (answer.status, await answer.json()) == (200, {"input_tokens": 3})
        assert neuron.requests_to("/tokenize")


@pytest.mark.parametrize(
    ("fields", "status", "kind"),
    [
        ({"model": "no/such"}, 404, "not_found_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"messages": 3}, 400, "invalid_request_error"),
    ],
)
async def test_a_bad_count_is_refused(
    service: Served, fields: dict[str, Any], status: int, kind: str
) -> None:
    async with count(service, **fields) as answer:
        assert (answer.status, error_kind(MESSAGE, await answer.json())) == (status, kind)


async def test_a_count_that_nobody_can_make_is_an_error(
    service: Served, neuron: FakeNeuron
) -> None:
    neuron.stop()
    async with count(service) as answer:
        assert (answer.status, answer.headers["retry-after"]) == (529, "5")
        assert error_kind(MESSAGE, await answer.json()) == "overloaded_error"


async def test_a_neuron_that_hangs_keeps_no_count_waiting_while_another_answers(
    service: Served, neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.token_count.PATIENCE_SECONDS", 0.02)
    with FakeNeuron() as other:
        neurons = [a_neuron(neuron.url), a_neuron(other.url, id=2, name="other")]
        feasible = a_model(feasible_on=("beast", "other"))
        service.show(a_view(neurons, [a_placement()], models=[feasible]))
        neuron.knobs.hang = True
        async with count(service) as answer:
            assert (answer.status, await answer.json()) == (200, {"input_tokens": 3})
        assert neuron.requests_to("/tokenize")
        neuron.knobs.hang = False


async def test_a_slow_count_is_waited_for_where_nobody_else_can_tell(
    service: Served, neuron: FakeNeuron, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.token_count.PATIENCE_SECONDS", 0.0)
    neuron.knobs.hang = True
    asking = asyncio.ensure_future(count(service).__aenter__())
    await eventually(lambda: neuron.requests_to("/tokenize"))
    neuron.knobs.hang = False
    answer = await asking
    assert (answer.status, await answer.json()) == (200, {"input_tokens": 3})
    answer.release()


# --- models --------------------------------------------------------------------------------------


async def test_models_come_in_the_shape_of_who_asks(service: Served) -> None:
    url = f"{service.url}/v1/models"
    async with service.http.get(url) as answer:
        assert [each["id"] for each in (await answer.json())["data"]] == [MODEL, "local/large"]
    headers = {"anthropic-version": "2023-06-01"}
    async with service.http.get(f"{url}?limit=1", headers=headers) as answer:
        listed = await answer.json()
        assert "request-id" in answer.headers
    assert [each["id"] for each in listed["data"]] == [MODEL]
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (True, MODEL, MODEL)
    async with service.http.get(f"{url}/{MODEL}", headers=headers) as answer:
        shown = await answer.json()
    assert shown == listed["data"][0]
    assert (shown["type"], shown["created_at"][:4]) == ("model", "2026")


@pytest.mark.parametrize("path", ["/v1/models?limit=0", "/v1/models/no/such", "/v1/nothing"])
async def test_errors_come_in_the_shape_of_who_asks(service: Served, path: str) -> None:
    headers = {"anthropic-version": "2026-10-21"}
    async with service.http.get(f"{service.url}{path}", headers=headers) as answer:
        assert answer.status in (400, 404)
        assert (await answer.json())["type"] == "error"
