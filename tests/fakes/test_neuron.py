"""The fake neuron must behave, or the tests that stand on it prove nothing."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import msgspec
import pytest

from neuron_agent import protocol
from neuron_agent.protocol import ErrorCode, ModelPhase
from tests.fakes.neuron import FakeNeuron, Refusal
from tests.fakes.scripted_reply import ScriptedCall, ScriptedReply

CHAT = "/v1/chat/completions"


@pytest.fixture
def neuron() -> Iterator[FakeNeuron]:
    with FakeNeuron(device_memory_mb=(2_500, 4_000)) as running:
        yield running


def connect(neuron: FakeNeuron) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(neuron.url.removeprefix("http://"), timeout=10)


def call(
    neuron: FakeNeuron, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, bytes]:
    connection = connect(neuron)
    try:
        sent = None if body is None else msgspec.json.encode(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, sent, names)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def chat(**options: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "one two"}], **options}


def error_of(body: bytes) -> protocol.ErrorDetail:
    return msgspec.json.decode(body, type=protocol.ErrorBody).error


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def data_frames(body: bytes) -> list[Any]:
    frames = [frame for frame in body.split(b"\n\n") if frame.startswith(b"data: {")]
    return [json.loads(frame.removeprefix(b"data: ")) for frame in frames]


def controls(body: bytes) -> list[protocol.ControlFrame]:
    prefix = protocol.CONTROL_FRAME_PREFIX
    frames = [frame for frame in body.split(b"\n\n") if frame.startswith(prefix)]
    return [msgspec.json.decode(f[len(prefix) :], type=protocol.ControlFrame) for f in frames]


def test_a_stream_carries_role_and_text_first_then_finish_usage_and_done(neuron: FakeNeuron):
    neuron.place("m")
    asked = chat(stream=True, stream_options={"include_usage": True})
    status, body = call(neuron, "POST", CHAT, asked, x_cortex_frames="1")
    chunks = data_frames(body)
    assert status == 200
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "word0 "}
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 8 + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 2 + 8
    before, frame = controls(body)
    assert (before.usage, before.finish_reason) == (protocol.Usage(2, 0), None)
    assert body.startswith(protocol.CONTROL_FRAME_PREFIX)
    assert (frame.usage, frame.finish_reason) == (protocol.Usage(2, 8), "stop")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_count_is_that_of_the_chat_loaded_or_not(neuron: FakeNeuron):
    status, body = call(neuron, "POST", "/tokenize", chat(return_tokens=False))
    assert (status, json.loads(body)) == (200, {"count": 2, "max_model_len": None})
    neuron.place("m")
    _, body = call(neuron, "POST", "/tokenize", chat())
    assert json.loads(body) == {"count": 2, "max_model_len": neuron.knobs.context_tokens}
    neuron.knobs.refuse_tokenize = Refusal(404, ErrorCode.MODEL_NOT_FOUND)
    status, body = call(neuron, "POST", "/tokenize", chat())
    assert (status, error_of(body).code) == (404, ErrorCode.MODEL_NOT_FOUND)


def test_a_stop_string_ends_the_answer_and_is_named(neuron: FakeNeuron):
    neuron.place("m")
    asked = chat(stream=True, stop=["nothing", "word3"])
    _, body = call(neuron, "POST", CHAT, asked, x_cortex_frames="1")
    frame = controls(body)[-1]
    assert (frame.finish_reason, frame.stop_sequence) == ("stop", "word3")
    assert frame.usage == protocol.Usage(2, 3)


def test_a_plain_stream_carries_no_usage_and_no_control_frame(neuron: FakeNeuron):
    neuron.place("m")
    _, body = call(neuron, "POST", CHAT, chat(stream=True, max_tokens=3))
    chunks = data_frames(body)
    assert len(chunks) == 3 + 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert protocol.CONTROL_FRAME_PREFIX not in body


def test_an_answer_in_one_piece_holds_text_and_usage(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.reply_tokens = ("Hel", "lo")
    _, body = call(neuron, "POST", CHAT, chat())
    answer = json.loads(body)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}
    assert answer["usage"]["completion_tokens"] == 2


CALLING = ScriptedReply("Let me see.", "Must look.", (ScriptedCall("look", {"at": "the sky"}),))


def test_a_script_is_for_requests_with_tools_and_each_reply_is_said_once(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.script = [ScriptedReply("first"), ScriptedReply("second")]

    def said(**options: Any) -> str:
        _, body = call(neuron, "POST", CHAT, chat(**options))
        return json.loads(body)["choices"][0]["message"]["content"]

    tools = [{"type": "function", "function": {"name": "look"}}]
    assert said(tools=tools) == "first"
    assert said().startswith("word0")
    assert said(tools=tools) == "second"
    assert said(tools=tools).startswith("word0")


def test_a_scripted_reply_is_the_same_streamed_and_whole(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.script = [CALLING, CALLING]
    tools = [{"type": "function", "function": {"name": "look"}}]
    _, whole = call(neuron, "POST", CHAT, chat(tools=tools))
    _, streamed = call(neuron, "POST", CHAT, chat(tools=tools, stream=True))

    (choice,) = json.loads(whole)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"], message["reasoning_content"]) == ("Let me see.", "Must look.")
    (made,) = message["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"at": "the sky"}

    chunks = data_frames(streamed)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert [d["role"] for d in deltas if "role" in d] == ["assistant"]
    for name in ("reasoning_content", "content"):
        pieces = [delta[name] for delta in deltas if name in delta]
        assert len(pieces) > 1
        assert "".join(pieces) == message[name]
    opened, *rest = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert opened == {**made, "index": 0, "function": {**made["function"], "arguments": ""}}
    arguments = "".join(piece["function"]["arguments"] for piece in rest)
    assert arguments == made["function"]["arguments"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(neuron: FakeNeuron, stream: bool):
    neuron.place("m")
    neuron.knobs.first_token_delay_seconds = inf
    connection = connect(neuron)
    connection.request("POST", CHAT, msgspec.json.encode(chat(stream=stream)))
    wait_until(lambda: neuron.in_flight == 1)
    connection.close()
    wait_until(lambda: neuron.in_flight == 0)
    assert neuron.aborted_requests == 1
    assert neuron.max_in_flight == 1


def test_while_no_token_comes_the_stream_says_so(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.first_token_delay_seconds = inf
    neuron.knobs.frame_interval_seconds = 0.01
    connection = connect(neuron)
    body = msgspec.json.encode(chat(stream=True))
    connection.request("POST", CHAT, body, {"x-cortex-frames": "1"})
    answer = connection.getresponse()
    assert answer.readline().startswith(b': cortex {"progress":{"stage":"queued"')
    neuron.knobs.first_token_delay_seconds = 0
    assert answer.read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_concurrent_loads_of_a_model_are_one_load(neuron: FakeNeuron):
    neuron.knobs.load_seconds = inf
    for _ in range(2):
        status, body = call(neuron, "POST", "/models/load", {"model_id": "org/m"})
        assert (status, json.loads(body)["phase"]) == (202, "loading")
    status, body = call(neuron, "POST", "/models/load", {"model_id": "org/m", "dtype": "x"})
    assert (status, error_of(body).code) == (409, ErrorCode.LOADED_WITH_OTHER_OPTIONS)
    neuron.knobs.load_seconds = 0
    status, body = call(neuron, "POST", "/models/load", {"model_id": "org/m", "wait": True})
    assert (status, json.loads(body)["phase"]) == (200, "ready")
    assert neuron.num_loads == {"org/m": 1}
    assert json.loads(call(neuron, "GET", "/models/org/m/endpoint")[1]) == {"url": neuron.url}
    assert json.loads(call(neuron, "GET", "/v1/models")[1])["data"][0]["id"] == "org/m"


def test_a_model_that_does_not_fit_is_refused_with_numbers(neuron: FakeNeuron):
    neuron.place("other", devices=(1,))
    neuron.knobs.model_memory_mb["big"] = 3_500
    status, body = call(neuron, "POST", "/models/load", {"model_id": "big"})
    error = error_of(body)
    assert (status, error.code) == (422, ErrorCode.DOES_NOT_FIT)
    assert (error.needed_mb, error.free_mb) == (3_500, 3_000)
    health = msgspec.json.decode(call(neuron, "GET", "/health")[1], type=protocol.Health)
    assert [device.vram_free_mb for device in health.devices] == [2_500, 3_000]


def test_a_load_that_fails_is_told_and_may_be_tried_again(neuron: FakeNeuron):
    neuron.knobs.fail_load = (ErrorCode.REPO_FETCH_FAILED, "no such repository")
    status, body = call(neuron, "POST", "/models/load", {"model_id": "m", "wait": True})
    assert (status, error_of(body).code) == (422, ErrorCode.REPO_FETCH_FAILED)
    models = msgspec.json.decode(call(neuron, "GET", "/models")[1], type=protocol.ModelList).models
    assert models[0].phase is ModelPhase.FAILED
    neuron.knobs.fail_load = None
    assert call(neuron, "POST", "/models/load", {"model_id": "m", "wait": True})[0] == 200


def test_an_unload_of_a_busy_model_is_refused_or_drains(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.first_token_delay_seconds = inf
    connection = connect(neuron)
    connection.request("POST", CHAT, msgspec.json.encode(chat()))
    wait_until(lambda: neuron.in_flight == 1)
    unload = {"model_id": "m", "only_if_idle": True}
    status, body = call(neuron, "POST", "/models/unload", unload)
    assert (status, error_of(body).code) == (409, ErrorCode.BUSY)
    assert neuron.phase_of("m") is ModelPhase.READY
    call(neuron, "POST", "/models/unload", {"model_id": "m", "drain_seconds": 60})
    assert neuron.phase_of("m") is ModelPhase.DRAINING
    assert call(neuron, "POST", CHAT, chat())[0] == 503
    neuron.knobs.first_token_delay_seconds = 0
    assert connection.getresponse().status == 200
    connection.close()
    wait_until(lambda: neuron.phase_of("m") is None)
    assert call(neuron, "POST", "/models/unload", unload)[0] == 404


def test_faults_come_as_asked(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.fail_before_first_byte = Refusal(503, ErrorCode.SATURATED, retry_after=7)
    assert call(neuron, "POST", CHAT, chat())[0] == 503
    neuron.knobs.fail_before_first_byte = None
    neuron.knobs.drop_connection_after_tokens = 2
    with pytest.raises(http.client.IncompleteRead) as cut:
        call(neuron, "POST", CHAT, chat(stream=True))
    assert len(data_frames(cut.value.partial)) == 2
    neuron.knobs.drop_connection_before_head = True
    with pytest.raises(http.client.RemoteDisconnected):
        call(neuron, "POST", CHAT, chat())


def test_a_poisoned_device_refuses_its_models_only(neuron: FakeNeuron):
    neuron.place("m", devices=(0,))
    neuron.place("other", devices=(1,))
    neuron.knobs.poisoned_devices = frozenset({0})
    status, body = call(neuron, "POST", CHAT, chat())
    assert (status, error_of(body).code) == (503, ErrorCode.DEVICE_FAULT)
    assert call(neuron, "POST", CHAT, chat(model="other"))[0] == 200


def test_over_capacity_and_unknown_models_and_paths_are_refused(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.max_in_flight = 0
    assert call(neuron, "POST", CHAT, chat())[0] == 429
    assert call(neuron, "POST", CHAT, chat(model="x"))[0] == 404
    assert call(neuron, "GET", "/nothing")[0] == 404
    assert call(neuron, "POST", CHAT, ["not an object"])[0] == 400


def test_a_token_is_asked_of_everybody(neuron: FakeNeuron):
    neuron.knobs.token = "secret"
    assert call(neuron, "GET", "/version")[0] == 401
    assert call(neuron, "GET", "/version", authorization="Bearer secret")[0] == 200


def test_exact_frames_are_sent_as_they_are(neuron: FakeNeuron):
    neuron.place("m")
    neuron.knobs.scripted_frames = (b"data: {", b"}\n\n: odd\r\n")
    assert call(neuron, "POST", CHAT, chat(stream=True))[1] == b"data: {}\n\n: odd\r\n"


def test_a_closed_port_refuses_and_comes_back_with_its_models(neuron: FakeNeuron):
    neuron.place("m")
    neuron.stop()
    with pytest.raises(ConnectionRefusedError):
        call(neuron, "GET", "/version")
    neuron.start()
    assert call(neuron, "POST", CHAT, chat())[0] == 200


def test_a_restart_forgets_models_and_changes_the_boot_id(neuron: FakeNeuron):
    neuron.place("m")
    boot_id = neuron.boot_id
    neuron.restart()
    answer = msgspec.json.decode(call(neuron, "GET", "/version")[1], type=protocol.VersionInfo)
    assert answer.boot_id == neuron.boot_id != boot_id
    assert neuron.phase_of("m") is None


def test_a_hanging_neuron_takes_the_request_and_says_nothing_until_released(neuron: FakeNeuron):
    neuron.knobs.hang = True
    connection = connect(neuron)
    connection.request("GET", "/version", headers={"x-request-id": "r1"})
    wait_until(lambda: len(neuron.requests_to("/version")) == 1)
    assert neuron.requests[0].headers["x-request-id"] == "r1"
    neuron.knobs.hang = False
    assert connection.getresponse().status == 200
    connection.close()
