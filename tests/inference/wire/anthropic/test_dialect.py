"""What is no answer, as Anthropic's clients know it: errors' statuses and types, signs of life."""

import json

import pytest

from inference.wire import errors
from inference.wire.anthropic.dialect import DIALECT
from inference.wire.errors import CortexError, NeuronAnswered


def neurons(status: int, code: str, message: str = "no") -> NeuronAnswered:
    return NeuronAnswered(message, status=status, type="invalid_request_error", code=code)


@pytest.mark.parametrize(
    ("error", "status", "type_"),
    [
        (errors.InvalidRequest("no"), 400, "invalid_request_error"),
        (neurons(400, "context_length_exceeded"), 400, "invalid_request_error"),
        (neurons(401, "invalid_api_key"), 401, "authentication_error"),
        (neurons(403, "model_not_allowed"), 403, "permission_error"),
        (errors.PathNotFound("no"), 404, "not_found_error"),
        (errors.ModelNotFound("m"), 404, "not_found_error"),
        (errors.MethodNotAllowed("GET", "POST"), 405, "invalid_request_error"),
        (errors.RequestCancelled(), 409, "invalid_request_error"),
        (errors.RequestTooLarge(32 << 20), 413, "request_too_large"),
        (neurons(422, "wrong_modality"), 422, "invalid_request_error"),
        (neurons(429, "rate_limit_exceeded"), 429, "rate_limit_error"),
        (errors.Saturated("no", retry_after_seconds=7), 529, "overloaded_error"),
        (errors.ModelLoading("no", retry_after_seconds=7), 529, "overloaded_error"),
        (errors.NoFeasibleNeuron("no", retry_after_seconds=7), 529, "overloaded_error"),
        (errors.NeuronUnreachable("no", retry_after_seconds=7), 529, "overloaded_error"),
        (neurons(503, "saturated"), 529, "overloaded_error"),
        (neurons(503, "device_fault"), 503, "api_error"),
        (errors.ModelLoadFailed("no", retry_after_seconds=7), 503, "api_error"),
        (errors.UpstreamError("no"), 502, "api_error"),
        (errors.InternalError("req-1"), 500, "api_error"),
    ],
)
def test_an_error_has_the_status_and_type_that_clients_know(
    error: CortexError, status: int, type_: str
) -> None:
    answer = DIALECT.error_answer(error, "req-1")
    body = {
        "type": "error",
        "error": {"type": type_, "message": error.message},
        "request_id": "req-1",
    }
    assert answer.status == status
    assert json.loads(answer.body) == body
    assert dict(answer.headers)[b"content-type"] == b"application/json"
    event, data, *rest = DIALECT.error_frame(error, "req-1").split(b"\n")
    assert (event, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == body


def test_an_overload_says_when_to_ask_again() -> None:
    error = errors.Saturated("no", retry_after_seconds=7)
    assert (b"retry-after", b"7") in DIALECT.error_answer(error, "req-1").headers


def test_what_a_caller_cancelled_is_not_to_be_asked_again() -> None:
    refused = (b"x-should-retry", b"false")
    assert refused in DIALECT.error_answer(errors.RequestCancelled(), "req-1").headers
    assert refused not in DIALECT.error_answer(errors.UpstreamError("no"), "req-1").headers


def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_look_for() -> None:
    message = "prompt is too long: 9000 tokens > 4096 maximum"
    answer = DIALECT.error_answer(neurons(400, "context_length_exceeded", message), "req-1")
    assert json.loads(answer.body)["error"]["message"] == message


def test_a_sign_of_life_is_a_comment_with_the_progress_and_a_ping() -> None:
    comment, ping, rest = DIALECT.keep_alive({"stage": "loading", "percent": 40}).split(b"\n\n")
    assert comment.startswith(b": cortex-")
    assert json.loads(comment[comment.index(b"{") :]) == {"stage": "loading", "percent": 40}
    assert ping == b'event: ping\ndata: {"type": "ping"}'
    assert rest == b""


def test_a_request_is_named_in_both_headers() -> None:
    assert DIALECT.request_id_headers == (b"request-id", b"x-request-id")


def test_what_programs_tell_an_error_by_stands_in_its_details() -> None:
    error = errors.InvalidRequest("no", extra={"error_code": "thread_unsupported_request"})
    body = json.loads(DIALECT.error_answer(error, "req-1").body)
    assert body["error"]["details"] == {"error_code": "thread_unsupported_request"}
    other = errors.InvalidRequest("no", extra={"stage": "loading"})
    assert "details" not in json.loads(DIALECT.error_answer(other, "req-1").body)["error"]
