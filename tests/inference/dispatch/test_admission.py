"""The waiting room has a size, in heads and in bytes."""

from hypothesis import given
from hypothesis import strategies as st

from inference.dispatch.admission import Admit, Limits, Reject, admit_body, admit_waiter

LIMITS = Limits(max_waiting=5, max_waiting_bytes=100, max_held_bytes=200)


@given(st.lists(st.integers(0, 120), max_size=12))
def test_what_is_held_stays_within_the_limits(bodies: list[int]) -> None:
    held: list[int] = []
    for body_bytes in bodies:
        match admit_waiter(len(held), sum(held), body_bytes, LIMITS):
            case Admit():
                held.append(body_bytes)
            case Reject(reason, retry_after_seconds):
                assert reason
                assert retry_after_seconds > 0
    assert len(held) <= LIMITS.max_waiting
    assert len(held) <= 1 or sum(held) <= LIMITS.max_waiting_bytes


def test_one_large_request_alone_is_taken() -> None:
    assert admit_waiter(0, 0, 10_000, LIMITS) == Admit()


@given(st.integers(0, 200), st.integers(0, 300))
def test_a_body_is_taken_while_it_fits(held_bytes: int, more_bytes: int) -> None:
    fits = held_bytes + more_bytes <= LIMITS.max_held_bytes
    assert isinstance(admit_body(held_bytes, more_bytes, LIMITS), Admit) is fits
