"""A failure's code tells a client whether to try again."""

import pytest

from inference.wire import errors
from inference.wire.responses.failure import failure_of


def answered(status: int, code: str) -> errors.NeuronAnswered:
    return errors.NeuronAnswered("No.", status=status, type="x", code=code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (answered(400, "context_length_exceeded"), "context_length_exceeded"),
        (answered(429, "insufficient_quota"), "insufficient_quota"),
        (answered(400, "unsupported_parameter"), "invalid_prompt"),
        (answered(422, "wrong_modality"), "invalid_prompt"),
        (errors.ModelNotFound("m"), "invalid_prompt"),
        (errors.RequestCancelled(), "invalid_prompt"),
        (errors.UpstreamError("No."), "server_error"),
        (errors.InternalError("req-1"), "server_error"),
        (answered(429, "rate_limit_exceeded"), "rate_limit_exceeded"),
        (errors.Saturated("No.", retry_after_seconds=5), "rate_limit_exceeded"),
    ],
)
def test_the_code_is_one_that_clients_know(error: errors.CortexError, code: str) -> None:
    assert failure_of(error)["code"] == code


def test_the_pause_before_the_next_try_is_in_the_words() -> None:
    told = failure_of(errors.ModelLoading("It loads.", retry_after_seconds=12))
    assert told["message"] == "It loads. Please try again in 12s."
    assert failure_of(errors.UpstreamError("It broke."))["message"] == "It broke."
