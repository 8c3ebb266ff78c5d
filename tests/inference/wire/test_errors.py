"""Errors: 503 says when to ask again, no path gets out."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire import errors
from inference.wire.errors import CortexError, Unavailable


def all_subclasses(kind: type[CortexError]) -> set[type[CortexError]]:
    direct = set(kind.__subclasses__())
    return direct.union(*(all_subclasses(child) for child in direct))


def test_the_docstring_draws_every_error_with_its_status_and_code() -> None:
    assert errors.__doc__ is not None
    lines = errors.__doc__.splitlines()
    for kind in all_subclasses(CortexError) - {Unavailable, errors.NeuronAnswered}:
        (line,) = [line for line in lines if f"── {kind.__name__} " in line]
        assert kind.code in line
        assert str(kind.status) in line or issubclass(kind, Unavailable)


def test_every_503_is_listed() -> None:
    assert set(errors.UNAVAILABLE) == all_subclasses(Unavailable)


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_retry_after_is_whole_seconds_within_bounds(seconds: float) -> None:
    error = errors.ModelLoading("x", retry_after_seconds=seconds)
    headers = dict(errors.error_headers(error))
    told = int(headers[b"retry-after"])
    assert 1 <= told <= 300
    assert told == min(300, max(1, math.ceil(seconds)))


def test_a_wrong_method_is_told_the_right_one() -> None:
    assert (b"allow", b"GET, HEAD") in errors.error_headers(
        errors.MethodNotAllowed("PUT", "GET, HEAD")
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /home/me/models/x.bin here", "cannot read (path) here"),
        ("'/etc/passwd' is missing", "'(path)' is missing"),
        ("org/model is at https://hub.example/org/model", None),
        ("3/4 of it and/or more", None),
    ],
)
def test_paths_of_a_host_are_taken_out(text: str, expected: str | None) -> None:
    assert errors.without_paths(text) == (text if expected is None else expected)


def test_what_its_caller_cancelled_is_not_asked_again() -> None:
    headers = errors.error_headers(errors.RequestCancelled())
    assert (b"x-should-retry", b"false") in headers
    assert b"x-should-retry" not in dict(errors.error_headers(errors.UpstreamError("x")))
