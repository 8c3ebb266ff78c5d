"""The neuron's HTTP contract, over real HTTP against a real front process with a fake device."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import OpenAI

from neuron_agent import protocol
from tests.fakes.fake_device import CONTEXT_TOKENS, REPLY
from tests.neuron_agent.front import (
    Front,
    chat_body,
    data_frames,
    read_answer,
    read_until,
    text_of,
    wait_until,
)
from tests.neuron_agent.tiny_model import PLAIN_TEMPLATE, write_model

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def running_front(folder: Path) -> Iterator[Front]:
    with Front(
        {"MAX_IN_FLIGHT": "2", "MAX_QUEUE_DEPTH": "2", "HF_CACHE": str(folder.parent)}
    ) as front:
        assert front.load(folder).status == 200
        yield front


@pytest.fixture
def front(running_front: Front) -> Iterator[Front]:
    yield running_front
    running_front.hang_up()
    wait_until(lambda: running_front.num_requests() == 0, "every place is given back")


# --- what the neuron says of itself --------------------------------------------------------------


def test_the_answers_are_the_protocol_s_messages(front: Front) -> None:
    version = msgspec.convert(front.get("/version"), protocol.VersionInfo)
    discovery = msgspec.convert(front.get("/discovery"), protocol.Discovery)
    health = msgspec.convert(front.get("/health"), protocol.Health)
    models = msgspec.convert(front.get("/models"), protocol.ModelList)
    assert version.boot_id == discovery.boot_id == health.boot_id
    assert [device.kind for device in discovery.devices] == ["cpu"]
    assert discovery.cuda_unavailable_reason is not None
    assert health.devices[0].vram_used_mb == 10
    assert models.models[0].phase is protocol.ModelPhase.READY
    assert models.models[0].limit == protocol.ModelLimit(
        CONTEXT_TOKENS, CONTEXT_TOKENS - 1, CONTEXT_TOKENS - 1
    )
    assert models.models[0].tool_call


def test_openai_s_model_list_names_what_is_ready(front: Front) -> None:
    assert [model["id"] for model in front.get("/v1/models")["data"]] == ["org/tiny"]


def test_endpoint_of_a_model_id_with_a_slash(front: Front) -> None:
    url = front.get("/models/org/tiny/endpoint")["url"]
    assert url == f"http://127.0.0.1:{front.port}"
    assert front.ask("GET", "/models/org/other/endpoint").status == 404


def test_metrics_are_prometheus_text(front: Front) -> None:
    text = front.ask("GET", "/metrics").body.decode()
    assert 'neuron_requests_running{model="org/tiny"} 0.0' in text
    assert 'neuron_device_poisoned{device="cpu:0"} 0.0' in text
    assert "neuron_kv_cache_usage_ratio" in text


# --- chat ----------------------------------------------------------------------------------------


def test_completion_is_openai_s_shape(front: Front) -> None:
    answer = front.chat(max_tokens=1000)
    body = answer.json
    assert answer.text == REPLY
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}


def test_stream_has_one_head_one_finish_and_ends_with_done(front: Front) -> None:
    frames = front.stream()
    chunks = list(data_frames(frames))
    assert frames[-1] == b"data: [DONE]"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[0]["choices"][0]["delta"]["content"] == REPLY[0]
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert [reason for reason in finishes if reason] == ["stop"]
    assert text_of(frames) == REPLY


def test_usage_comes_in_its_own_chunk_only_when_asked(front: Front) -> None:
    asked = list(data_frames(front.stream(stream_options={"include_usage": True, "other": 1})))
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert all("usage" not in chunk for chunk in data_frames(front.stream()))


def test_control_frames_come_only_to_who_asks(front: Front) -> None:
    frames = front.stream(headers={"X-Cortex-Frames": "1"})
    prefix = protocol.CONTROL_FRAME_PREFIX
    control = msgspec.json.decode(frames[-2].removeprefix(prefix), type=protocol.ControlFrame)
    assert control.finish_reason == "stop"
    assert control.usage is not None
    assert control.usage.cached_tokens == 2
    assert control.timing is not None
    assert control.timing.prefill_ms == 2.0
    assert not any(frame.startswith(b":") for frame in front.stream())


def test_who_waits_hears_where_the_request_is(front: Front) -> None:
    headers = "X-Cortex-Frames: 1\r\nX-Request-Id: waiting\r\n"
    sock = front.open_chat("PREFILL", headers, stream=True)
    begun = read_until(sock, b"}}\n\n")
    assert b': cortex {"progress":{"stage":"prefill","done":3' in begun
    assert front.ask("DELETE", "/v1/requests/waiting").status == 200
    rest = read_answer(sock)
    assert b'"code":"request_cancelled"' in rest
    assert b"[DONE]" not in rest


def test_who_waits_without_control_frames_is_kept_alive(front: Front) -> None:
    with front.open_chat("PREFILL", stream=True) as sock:
        assert b": keep-alive\n\n" in read_until(sock, b"\n\n\r\n")


def test_the_openai_sdk_takes_both_forms(front: Front) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{front.port}/v1", api_key="none", max_retries=0)
    messages: Any = [{"role": "user", "content": "hi"}]
    whole = client.chat.completions.create(model="org/tiny", messages=messages)
    with client.chat.completions.create(model="org/tiny", messages=messages, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    client.close()
    assert whole.choices[0].message.content == text == REPLY


def test_max_tokens_ends_with_length(front: Front) -> None:
    short = front.chat(max_completion_tokens=5).json
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("max_tokens", [None, 10**9])
def test_answer_may_fill_the_context_and_no_more(
    front: Front, folder: Path, max_tokens: int | None
) -> None:
    front.load(folder, "small", max_context=100)
    body = front.chat("FOREVER", model="small", max_tokens=max_tokens).json
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["total_tokens"] == 100
    assert front.unload("small").status == 200


def test_prompt_longer_than_the_context_is_refused_before_any_work(front: Front) -> None:
    answer = front.chat("x y " * CONTEXT_TOKENS)
    assert answer.status == 400
    assert answer.error["code"] == "context_length_exceeded"


def test_stop_string_ends_the_answer_and_is_not_shown(front: Front) -> None:
    frames = front.stream(stop=["fake dev", "never"])
    assert text_of(frames) == REPLY.split("fake dev", maxsplit=1)[0]
    answer = front.chat(stop="three")
    assert answer.text == REPLY.split("three", maxsplit=1)[0]
    assert answer.json["choices"][0]["finish_reason"] == "stop"


def test_text_that_only_begins_a_stop_string_is_given_out_in_the_end(front: Front) -> None:
    assert front.chat(stop=["three. And"]).text == REPLY


def test_bytes_that_are_no_text_come_as_replacement_characters(front: Front) -> None:
    text = text_of(front.stream("BROKEN"))
    assert "\ufffd" in text
    assert text == front.chat("BROKEN").text


def test_tools_and_tool_results_reach_the_template(front: Front) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "ECHO"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "Sunny."}]},
    ]
    text = front.chat(messages=messages, tools=[WEATHER]).text
    assert '"name": "get_weather"' in text
    assert "Sunny." in text


def test_template_arguments_reach_the_template(front: Front) -> None:
    assert "<think>" not in front.chat("ECHO").text
    switched_off = front.chat("ECHO", chat_template_kwargs={"enable_thinking": False})
    assert "<think>\n\n</think>" in switched_off.text


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("word", ["FOREVER", "QUEUED", "PREFILL"])
def test_client_that_leaves_gives_back_its_place(front: Front, streaming: bool, word: str) -> None:
    sock = front.open_chat(word, stream=streaming)
    wait_until(lambda: front.num_requests() == num_on_device(front) == 1, "it runs on the device")
    sock.close()
    wait_until(lambda: front.num_requests() == 0, "the place is free")
    wait_until(lambda: num_on_device(front) == 0, "the device has let go of it")


def num_on_device(front: Front) -> int:
    """Return how many requests the device says it is working on."""
    lines = front.ask("GET", "/metrics").body.decode().splitlines()
    prefix = 'neuron_requests_running{model="org/tiny"} '
    (value,) = (line.removeprefix(prefix) for line in lines if line.startswith(prefix))
    return int(float(value))


def test_delete_cancels_one_request(front: Front) -> None:
    answers: list[int] = []

    def ask() -> None:
        answers.append(front.chat("QUEUED", {"X-Request-Id": "mine"}).status)

    asker = threading.Thread(target=ask)
    asker.start()
    wait_until(lambda: front.num_requests() == 1, "the request is admitted")
    assert front.ask("DELETE", "/v1/requests/another").status == 404
    assert front.ask("DELETE", "/v1/requests/mine").status == 200
    asker.join()
    assert answers == [409]


def test_saturated_model_refuses_at_once(front: Front) -> None:
    socks = [front.open_chat("QUEUED") for _ in range(4)]
    wait_until(lambda: front.num_requests() == 4, "two run and two wait")
    health = front.get("/health")["models"][0]
    assert (health["in_flight"], health["queue_depth"]) == (2, 2)
    answer = front.chat()
    assert answer.status == 503
    assert answer.error["code"] == "saturated"
    assert int(answer.headers["retry-after"]) >= 1
    for sock in socks:
        sock.close()
    wait_until(lambda: front.num_requests() == 0, "every place is free")
    assert front.get("/health")["models"][0]["rejected"]["saturated"] == 1
    assert front.chat().status == 200


def test_a_failed_request_leaves_the_others_alone(front: Front) -> None:
    sock = front.open_chat("FOREVER", stream=True)
    wait_until(lambda: front.num_requests() == 1, "a neighbour runs")
    for word in ("FAIL", "OOM"):
        answer = front.chat(word)
        assert answer.status == 500
        assert answer.error["code"] == "request_failed"
    assert front.num_requests() == 1
    sock.close()
    kinds = [fault["kind"] for fault in front.get("/health")["faults"]]
    assert kinds == ["out_of_memory"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("invalid_request", 400),
        ("context_length_exceeded", 400),
        ("model_not_loaded", 503),
        ("request_failed", 500),
    ],
)
def test_refusal_of_the_device_says_whose_fault_it_is(front: Front, code: str, status: int) -> None:
    answer = front.chat(f"REFUSE={code}")
    assert (answer.status, answer.error["code"]) == (status, code)
    assert ("retry-after" in answer.headers) is (status == 503)


# --- bad input -----------------------------------------------------------------------------------

HI = [{"role": "user", "content": "hi"}]
BAD_FIELDS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"messages": []}, 400, "invalid_request", "messages"),
    ({"messages": "hi"}, 400, "invalid_request", "messages"),
    ({"messages": [{"content": "hi"}]}, 400, "invalid_request", "messages[0].role"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "invalid_request", "messages[0].role"),
    ({"messages": [{"role": "user"}]}, 400, "invalid_request", "messages[0].content"),
    ({"messages": [*HI, {"role": "user", "content": 5}]}, 400, "invalid_request", None),
    ({"messages": None}, 400, "invalid_request", "messages"),
    ({"model": 5}, 400, "invalid_request", "model"),
    ({"model": "unknown"}, 404, "model_not_found", "model"),
    ({"temperature": "hot"}, 400, "invalid_request", "temperature"),
    ({"temperature": 2.1}, 400, "invalid_request", "temperature"),
    ({"temperature": -1}, 400, "invalid_request", "temperature"),
    ({"top_p": 1.5}, 400, "invalid_request", "top_p"),
    ({"top_k": -5}, 400, "invalid_request", "top_k"),
    ({"seed": 2**70}, 400, "invalid_request", "seed"),
    ({"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
    ({"max_tokens": 1.5}, 400, "invalid_request", "max_tokens"),
    ({"max_completion_tokens": -1}, 400, "invalid_request", "max_completion_tokens"),
    ({"stop": [""]}, 400, "invalid_request", "stop"),
    ({"stop": ["a"] * 33}, 400, "invalid_request", "stop"),
    ({"stream": "yes"}, 400, "invalid_request", "stream"),
    ({"stream_options": 5}, 400, "invalid_request", "stream_options"),
    ({"tools": [5]}, 400, "invalid_request", "tools[0]"),
    ({"tools": [WEATHER], "tool_choice": "maybe"}, 400, "invalid_request", "tool_choice"),
    ({"tools": [], "tool_choice": "required"}, 400, "invalid_request", "tool_choice"),
    ({"tools": [{"function": {"name": ""}}]}, 400, "invalid_request", "tools[0].function.name"),
    ({"chat_template_kwargs": {"tools": []}}, 400, "invalid_request", "chat_template_kwargs"),
    ({"max_tokens": 10**12}, 400, "invalid_request", "max_tokens"),
    ({"n": 0}, 400, "invalid_request", "n"),
    ({"n": 17}, 400, "invalid_request", "n"),
    ({"n": 5}, 400, "invalid_request", "n"),  # more than this neuron ever has places
    ({"top_logprobs": 2}, 400, "invalid_request", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_request", "top_logprobs"),
    ({"logit_bias": {"five": 1}}, 400, "invalid_request", "logit_bias"),
    ({"logit_bias": {"5": 101}}, 400, "invalid_request", "logit_bias"),
    ({"presence_penalty": 2.5}, 400, "invalid_request", "presence_penalty"),
    ({"repetition_penalty": 0}, 400, "invalid_request", "repetition_penalty"),
    ({"min_p": 2}, 400, "invalid_request", "min_p"),
    ({"min_tokens": 5, "max_tokens": 4}, 400, "invalid_request", "min_tokens"),
    ({"stop_token_ids": [-1]}, 400, "invalid_request", "stop_token_ids"),
    ({"response_format": {"type": "xml"}}, 400, "invalid_request", "response_format.type"),
    ({"functions": [{"name": "f"}]}, 400, "unsupported_parameter", "functions"),
]


@pytest.mark.parametrize(("fields", "status", "code", "param"), BAD_FIELDS)
def test_bad_field_is_refused_by_name(
    front: Front, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = front.chat(**fields)
    assert (answer.status, answer.error["code"]) == (status, code)
    if param is not None:
        assert answer.error["param"] == param
    assert answer.headers["x-request-id"]


def test_neutral_values_and_unknown_fields_are_welcome(front: Front) -> None:
    answer = front.chat(
        n=1,
        logprobs=False,
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=None,
        repetition_penalty=1.0,
        response_format={"type": "text"},
        tools=[],
        tool_choice="auto",
        top_k=-1,
        top_p=0,
        seed=-5,
        stop=None,
        max_tokens=None,
        store=True,
        user="me",
        metadata={"a": {"b": [1]}},
        something_new=[{}],
    )
    assert answer.text == REPLY


def test_image_is_refused_as_a_wrong_modality(front: Front) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    answer = front.chat(messages=[{"role": "user", "content": [part]}])
    assert (answer.status, answer.error["code"]) == (422, "wrong_modality")


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b'{"model": "org/tiny", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "org/tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"temperature": NaN}',
    b'{"temperature": 1e999}',
    b"[" * 100_000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    json.dumps(chat_body("hi", metadata=json.loads("[" * 70 + "]" * 70))).encode(),
]


@pytest.mark.parametrize("path", [CHAT, "/models/load", "/models/unload", "/tokenize"])
@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_body_that_is_no_sound_json_object_is_refused(front: Front, path: str, body: bytes) -> None:
    answer = front.ask("POST", path, body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert b"Traceback" not in answer.body


def test_body_over_the_limit_is_refused_unread(front: Front) -> None:
    answer = front.ask("POST", CHAT, None, {"Content-Length": str(33 * 2**20)})
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_body_close_to_the_limit_is_read(front: Front) -> None:
    padding = "x" * (31 * 2**20)
    assert front.chat(metadata=padding).text == REPLY


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing/here", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/embeddings", 405),
        ("GET", "/v1/completions", 405),
        ("GET", CHAT, 405),
        ("DELETE", "/health", 405),
        ("PUT", "/models/load", 405),
        ("GET", "/models/unknown/events", 404),
    ],
)
def test_wrong_path_or_method_gets_openai_s_error(
    front: Front, method: str, path: str, status: int
) -> None:
    answer = front.ask(method, path)
    assert answer.status == status
    assert answer.error["message"]


def test_sane_request_id_is_kept_and_another_replaced(front: Front) -> None:
    def given(request_id: str) -> str:
        headers = {"X-Request-Id": request_id}
        return front.ask("GET", "/health", headers=headers).headers["x-request-id"]

    assert given("abc-1") == "abc-1"
    assert given("a b") != "a b"


def test_client_that_leaves_within_its_body_harms_nobody(front: Front) -> None:
    with socket.create_connection((front.host, front.port)) as sock:
        sock.sendall(b"POST /models/load HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert front.chat().text == REPLY


# --- templates -----------------------------------------------------------------------------------


def test_template_that_cannot_take_tools_fails_the_request_alone(
    front: Front, tmp_path: Path
) -> None:
    front.load(write_model(tmp_path / "plain", template=PLAIN_TEMPLATE), "plain")
    refused = front.chat(model="plain", tools=[WEATHER])
    assert (refused.status, refused.error["code"]) == (422, "template_render_failed")
    system = [{"role": "system", "content": "secret words"}]
    failed = front.chat(model="plain", messages=system)
    assert (failed.status, failed.error["code"]) == (422, "template_render_failed")
    assert b"secret words" not in failed.body
    assert front.chat(model="plain", tools=[WEATHER], tool_choice="none").text == REPLY
    assert front.unload("plain").status == 200


def test_model_without_a_template_says_so(front: Front, tmp_path: Path) -> None:
    front.load(write_model(tmp_path / "bare", template=None), "bare")
    assert front.chat(model="bare").error["code"] == "template_render_failed"
    assert front.model("bare")["servable"]["ok"] is False
    assert front.unload("bare").status == 200
