"""What the gateway reads of chat completions, and that the rest is left as it came."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire import openai_chat
from inference.wire.errors import InvalidRequest, NeuronAnswered, UpstreamError
from neuron_agent.protocol import ControlFrame, Usage

MESSAGES = [{"role": "user", "content": "hi"}]
extra_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("count", [-1, 2**31, 2**63, 10**30])
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "cached_tokens"])
def test_counts_that_can_be_none_are_unknown(name: str, count: int) -> None:
    counts = {"prompt_tokens": 1, "completion_tokens": 2, name: count}
    control = openai_chat.read_control(
        json.dumps({"usage": counts, "finish_reason": "stop"}).encode()
    )
    assert control == ControlFrame(finish_reason="stop")
    usage = {**counts, "prompt_tokens_details": {"cached_tokens": counts.get("cached_tokens")}}
    outcome = openai_chat.read_outcome(json.dumps({"usage": usage}).encode())
    assert outcome == openai_chat.Outcome()


@given(st.dictionaries(st.text(min_size=1, max_size=8), extra_values, max_size=4))
def test_rewriting_an_alias_changes_the_model_alone(extra: dict[str, object]) -> None:
    fields = {**extra, "model": "alias", "messages": MESSAGES, "stream": None}
    request = openai_chat.parse_request(json.dumps(fields).encode())
    assert json.loads(openai_chat.body_for(request, "org/m")) == {**fields, "model": "org/m"}
    assert openai_chat.body_for(request, "alias") is request.body


@pytest.mark.parametrize(("stream", "expected"), [(True, True), (False, False), (None, False)])
def test_stream_may_be_null(stream: bool | None, expected: bool) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, "stream": stream}).encode()
    assert openai_chat.parse_request(body).stream is expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": MESSAGES}, "model"),
        ({"model": "", "messages": MESSAGES}, "model"),
        ({"model": None, "messages": MESSAGES}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": {}}, "messages"),
        ({"model": "m", "messages": [3]}, "messages[0]"),
        ({"model": "m", "messages": [{"content": "x"}]}, "role"),
        ({"model": "m", "messages": MESSAGES, "stream": "yes"}, "stream"),
        ([], None),
    ],
)
def test_a_wrong_request_names_the_parameter(body: object, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        openai_chat.parse_request(json.dumps(body).encode())
    assert raised.value.param == param


def test_a_whole_answer_tells_its_usage() -> None:
    usage = {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": None,
    }
    answer = {"choices": [{"finish_reason": "length", "message": {}}], "usage": usage}
    outcome = openai_chat.read_outcome(json.dumps(answer).encode())
    assert (outcome.usage, outcome.finish_reason) == (Usage(5, 3, 2), "length")
    assert openai_chat.read_outcome(b"<html>").usage is None


def test_an_unreadable_control_frame_says_nothing() -> None:
    assert openai_chat.read_control(b"{") == ControlFrame()
    frame = openai_chat.read_control(b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"new":1}')
    assert frame.usage == Usage(1, 2)


def test_an_error_frame_tells_its_code() -> None:
    assert openai_chat.read_streamed_error(b'{"error":{"code":"device_fault"}}') == "device_fault"
    assert openai_chat.read_streamed_error(b'{"error":{}}') == "error"
    assert openai_chat.read_streamed_error(b'{"id":"x"}') == ""


def refusal(status: int, body: bytes, retry_after: str = "") -> NeuronAnswered | UpstreamError:
    return openai_chat.read_refusal(status, body, retry_after, "org/m", "alias")


DETAIL = b'{"error":{"message":"org/m is full","type":"t","code":"saturated","param":"p"}}'


def test_a_refusal_keeps_its_words_and_names_the_model_as_the_client_did() -> None:
    error = refusal(429, DETAIL, "3")
    assert (error.status, error.type, error.code, error.param) == (429, "t", "saturated", "p")
    assert error.message == "alias is full"
    assert error.retry_after_seconds == 3


def test_a_503_always_says_when_to_ask_again() -> None:
    assert refusal(503, DETAIL).retry_after_seconds == 1
    assert refusal(503, DETAIL, "9" * 30).retry_after_seconds == 300
    assert refusal(400, DETAIL).retry_after_seconds is None


@pytest.mark.parametrize("status", [200, 302, 401, 403])
def test_what_is_between_cortex_and_the_neuron_is_no_clients_error(status: int) -> None:
    assert refusal(status, DETAIL).status == 502


def test_a_page_of_html_is_not_shown() -> None:
    error = refusal(500, b"<html>secret</html>")
    assert (error.status, "secret" in error.message) == (502, False)
