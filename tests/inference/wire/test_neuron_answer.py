"""What the gateway reads of a neuron's answers: counts that can be, ends, refusals."""

import json

import pytest

from inference.wire import neuron_answer
from inference.wire.errors import NeuronAnswered, UpstreamError
from neuron_agent.protocol import ControlFrame, Usage

DETAIL = b'{"error":{"message":"org/m is full","type":"t","code":"saturated","param":"p"}}'


@pytest.mark.parametrize("count", [-1, 2**31, 2**63, 10**30])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "cached_tokens"])
def test_counts_that_can_be_none_are_unknown(name: str, count: int) -> None:
    counts = {"prompt_tokens": 1, "completion_tokens": 2, name: count}
    control = neuron_answer.read_control(
        json.dumps({"usage": counts, "finish_reason": "stop"}).encode()
    )
    assert control == ControlFrame(finish_reason="stop")
    usage = {**counts, "prompt_tokens_details": {"cached_tokens": counts.get("cached_tokens")}}
    outcome = neuron_answer.read_outcome(json.dumps({"usage": usage}).encode())
    assert outcome == neuron_answer.Outcome()


def test_a_whole_answer_tells_its_usage() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": None,
    }
    answer = {"choices": [{"finish_reason": "length", "message": {}}], "usage": usage}
    outcome = neuron_answer.read_outcome(json.dumps(answer).encode())
    assert outcome == neuron_answer.Outcome(Usage(5, 3, 2), "length")


@pytest.mark.parametrize("answer", [b"", b"<html>", b"{", b"data: {}\n\n", b"\x1f\x8b\x08"])
def test_a_whole_answer_that_is_no_json_is_none(answer: bytes) -> None:
    assert neuron_answer.read_outcome(answer) is None


def test_a_whole_answer_may_be_an_error() -> None:
    outcome = neuron_answer.read_outcome(DETAIL)
    assert outcome is not None
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.status) == ("saturated", 503)


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize("value", [b'"\xff"', DEEP, b"9" * 400])
def test_what_cannot_be_read_is_no_bug_of_ours(value: bytes) -> None:
    fields = b'{"finish_reason":%b,"choices":[{"finish_reason":%b}],"x":%b}' % ((value,) * 3)
    error = b'{"error":{"message":"m","type":"t","code":%b,"x":%b}}' % (value, value)
    assert neuron_answer.read_control(fields) == ControlFrame()
    assert neuron_answer.read_outcome(fields) in (None, neuron_answer.Outcome())
    assert neuron_answer.read_streamed_error(error).code == "error"
    assert refusal(400, error).status == 502


@pytest.mark.parametrize("done", [-1, 10**400])
def test_progress_that_can_be_none_is_not_told(done: int) -> None:
    frame = {"progress": {"stage": "prefill", "done": done, "total": 1}}
    assert neuron_answer.read_control(json.dumps(frame).encode()) == ControlFrame()


def test_an_unreadable_control_frame_says_nothing() -> None:
    assert neuron_answer.read_control(b"{") == ControlFrame()
    frame = neuron_answer.read_control(
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"new":1}'
    )
    assert frame.usage == Usage(1, 2)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("device_fault", 503),
        ("saturated", 503),
        ("context_length_exceeded", 400),
        ("request_failed", 502),
    ],
)
def test_an_error_frame_has_the_status_it_would_have_had(code: str, status: int) -> None:
    detail = {"message": "no /srv/x/y here", "type": "api_error", "code": code}
    error = neuron_answer.read_streamed_error(
        json.dumps({"error": detail}, separators=(",", ":")).encode()
    )
    assert (error.code, error.status, error.message) == (code, status, "no (path) here")
    assert (error.retry_after_seconds is not None) == (status == 503)


def test_an_error_frame_that_cannot_be_read_is_one_all_the_same() -> None:
    error = neuron_answer.read_streamed_error(b'{"error":{}}')
    assert (error.status, error.code) == (502, "error")


def refusal(status: int, body: bytes, retry_after: str = "") -> NeuronAnswered | UpstreamError:
    return neuron_answer.read_refusal(status, body, retry_after, "org/m", "alias")


def test_a_refusal_keeps_its_words_and_names_the_model_as_the_client_did() -> None:
    error = refusal(429, DETAIL, "3")
    assert (error.status, error.type, error.code, error.param) == (429, "t", "saturated", "p")
    assert error.message == "alias is full"
    assert error.retry_after_seconds == 3


def test_a_refusal_is_not_longer_than_anyone_reads() -> None:
    detail = {"message": "org/m " + "x" * 500_000, "type": "t", "code": "c"}
    body = json.dumps({"error": detail}).encode()
    error = neuron_answer.read_refusal(400, body, "", "org/m", "alias" * 100_000)
    assert len(error.message) < 3_000


def test_a_503_always_says_when_to_ask_again() -> None:
    assert refusal(503, DETAIL).retry_after_seconds == 1
    assert refusal(429, DETAIL).retry_after_seconds == 1
    assert refusal(503, DETAIL, "9" * 30).retry_after_seconds == 300
    assert refusal(400, DETAIL).retry_after_seconds is None


@pytest.mark.parametrize("status", [200, 302, 401, 403])
def test_what_is_between_cortex_and_the_neuron_is_no_clients_error(status: int) -> None:
    assert refusal(status, DETAIL).status == 502


def test_a_page_of_html_is_not_shown() -> None:
    error = refusal(500, b"<html>secret</html>")
    assert (error.status, "secret" in error.message) == (502, False)
