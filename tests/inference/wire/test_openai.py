"""What the gateway reads of OpenAI's requests, and that the rest is left as it came."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire import errors, openai
from inference.wire.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "hi"}]
extra_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


# No field of OpenAI's begins with it: what the gateway reads itself must be of the right type.
unread_names = st.text(max_size=8).map(lambda name: f"-{name}")


@given(st.dictionaries(unread_names, extra_values, max_size=4))
def test_rewriting_an_alias_changes_the_model_alone(extra: dict[str, object]) -> None:
    fields = {**extra, "model": "alias", "messages": MESSAGES, "stream": None}
    request = openai.parse_chat(json.dumps(fields).encode())
    assert json.loads(openai.body_for(request, "org/m")) == {**fields, "model": "org/m"}
    assert openai.body_for(request, "alias") is request.body


@pytest.mark.parametrize(("stream", "expected"), [(True, True), (False, False), (None, False)])
def test_stream_may_be_null(stream: bool | None, expected: bool) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, "stream": stream}).encode()
    assert openai.parse_chat(body).stream is expected


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
        ({"model": "m", "messages": [{"content": "x"}]}, "messages[0].role"),
        ({"model": "m", "messages": MESSAGES, "stream": "yes"}, "stream"),
        ([], None),
    ],
)
def test_a_wrong_request_names_the_parameter(body: object, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        openai.parse_chat(json.dumps(body).encode())
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"role": "owner", "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 42}, "messages[0].content"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
    ],
)
def test_a_wrong_message_is_refused_before_anything_is_loaded(body: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        openai.parse_chat(json.dumps({"model": "m", "messages": [body]}).encode())
    assert raised.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": None, "tools": [], "n": 1, "stream_options": {"include_usage": True, "new": 1}},
        {"stop": ["a", "b"], "logit_bias": {}, "metadata": {}, "store": False, "user": "me"},
        {"temperature": 0, "top_p": 1, "seed": -1, "max_completion_tokens": 5},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}, "verbosity": "low"},
    ],
)
def test_what_clients_send_passes(fields: dict[str, object]) -> None:
    body = json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode()
    assert openai.parse_chat(body).body is body


@pytest.mark.parametrize("prompt", ["x", "", ["a", "b"], [1, 2], [[1, 2], [3]]])
def test_prompts_and_inputs_are_texts_or_tokens(prompt: object) -> None:
    completion = json.dumps({"model": "m", "prompt": prompt, "stream": True}).encode()
    assert openai.parse_completion(completion).stream
    embedding = json.dumps({"model": "m", "input": prompt or ["x"], "stream": True}).encode()
    assert not openai.parse_embedding(embedding).stream


@pytest.mark.parametrize("prompt", [None, 3, {}, [1.5], [{}], [["x"]]])
def test_other_prompts_and_inputs_are_refused(prompt: object) -> None:
    with pytest.raises(InvalidRequest):
        openai.parse_completion(json.dumps({"model": "m", "prompt": prompt}).encode())
    with pytest.raises(InvalidRequest):
        openai.parse_embedding(json.dumps({"model": "m", "input": prompt}).encode())


@pytest.mark.parametrize("empty", ["", []])
def test_nothing_cannot_be_embedded(empty: object) -> None:
    with pytest.raises(InvalidRequest) as raised:
        openai.parse_embedding(json.dumps({"model": "m", "input": empty}).encode())
    assert raised.value.param == "input"


def test_a_body_has_openais_shape() -> None:
    error = errors.InvalidRequest("no", param="model")
    answer = openai.DIALECT.error_answer(error, "req-1")
    assert json.loads(answer.body) == {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "model",
            "code": "invalid_request",
        }
    }


def test_a_frame_of_a_stream_is_one_data_line() -> None:
    frame = openai.DIALECT.error_frame(errors.UpstreamError("a\nb"), "req-1")
    assert frame.startswith(b"data: {")
    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 2
