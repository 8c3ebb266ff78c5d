"""Laws of the circuit breaker."""

from hypothesis import given
from hypothesis import strategies as st

from inference.dispatch.breaker import (
    CLOSED,
    FAILURES_TO_OPEN,
    MAX_OPEN_SECONDS,
    MIN_OPEN_SECONDS,
    Breaker,
)

times = st.floats(0, 1e6)


def test_a_new_breaker_is_closed() -> None:
    assert CLOSED.is_closed(0.0)


@given(times)
def test_a_certain_failure_opens_it_at_once_and_time_closes_it(now: float) -> None:
    breaker = CLOSED.after_failure(now, is_certain=True)
    assert not breaker.is_closed(now)
    assert breaker.is_closed(now + MIN_OPEN_SECONDS)


@given(times)
def test_an_uncertain_failure_opens_it_only_as_a_series(now: float) -> None:
    breaker = CLOSED
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker = breaker.after_failure(now)
        assert breaker.is_closed(now)
    assert not breaker.after_failure(now).is_closed(now)


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), min_size=1, max_size=40))
def test_it_is_never_open_for_longer_than_the_bound(failures: list[tuple[float, bool]]) -> None:
    now = 0.0
    breaker: Breaker = CLOSED
    for pause, is_certain in failures:
        now += pause
        breaker = breaker.after_failure(now, is_certain=is_certain)
        assert breaker.is_closed(now + MAX_OPEN_SECONDS)


def test_each_further_failure_keeps_it_open_for_longer() -> None:
    first = CLOSED.after_failure(0.0, is_certain=True)
    again = first.open_until
    second = first.after_failure(again, is_certain=True)
    assert second.open_until - again == 2 * first.open_until


@given(st.integers(1, 20), st.booleans())
def test_requests_sent_before_it_opened_that_fail_too_are_no_news(
    num_others: int, is_certain: bool
) -> None:
    opened = CLOSED.after_failure(5.0, is_certain=True)
    breaker = opened
    for _ in range(num_others):
        breaker = breaker.after_failure(5.5, is_certain=is_certain)
    assert breaker == opened
