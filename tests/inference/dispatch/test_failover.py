"""What is tried again, what is waited for and what the client is told."""

import pytest

from inference.dispatch.failover import (
    GONE_SECONDS,
    Attempts,
    NextStep,
    TransportFailure,
    after_refusal,
    after_transport_failure,
)
from inference.wire.errors import UpstreamError


@pytest.mark.parametrize(
    ("failure", "step"),
    [
        (TransportFailure.REFUSED, NextStep.TRY_ANOTHER),
        (TransportFailure.CONNECT_TIMEOUT, NextStep.TRY_ANOTHER),
        (TransportFailure.BROKEN, NextStep.TRY_ANOTHER),
        (TransportFailure.SILENT, NextStep.TELL_CLIENT),
    ],
)
def test_a_neuron_at_work_is_not_given_a_rival(failure: TransportFailure, step: NextStep) -> None:
    assert after_transport_failure(failure) is step


@pytest.mark.parametrize(
    ("status", "code", "step"),
    [
        (503, "model_not_loaded", NextStep.WAIT_FOR_LOAD),
        (503, "model_loading", NextStep.WAIT_FOR_LOAD),
        (404, "model_not_found", NextStep.WAIT_FOR_LOAD),
        (503, "device_fault", NextStep.TRY_ANOTHER),
        (503, "saturated", NextStep.TRY_ANOTHER),
        (429, "saturated", NextStep.TELL_CLIENT),
        (400, "context_length_exceeded", NextStep.TELL_CLIENT),
        (500, "request_failed", NextStep.TELL_CLIENT),
        (502, "upstream_error", NextStep.TELL_CLIENT),
    ],
)
def test_a_refusal_leads_where_its_code_says(status: int, code: str, step: NextStep) -> None:
    assert after_refusal(status, code) is step


def test_a_placement_that_failed_is_tried_once_and_one_without_the_model_later_again() -> None:
    attempts = Attempts()
    first, second = UpstreamError("first"), UpstreamError("second")
    attempts.note(1, NextStep.WAIT_FOR_LOAD, first, 10.0)
    assert attempts.error is None
    attempts.note(2, NextStep.TRY_ANOTHER, second, 10.0)
    assert attempts.error is second
    assert attempts.excluded(10.0) == {1, 2}
    assert attempts.excluded(10.0 + GONE_SECONDS) == {2}


def test_what_is_the_clients_is_told_at_once() -> None:
    with pytest.raises(UpstreamError):
        Attempts().note(1, NextStep.TELL_CLIENT, UpstreamError("x"), 0.0)
