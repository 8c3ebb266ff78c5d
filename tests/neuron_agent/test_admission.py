"""Laws of admission: places are never oversold, shares are kept, anonymous callers yield."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.admission import (
    ANONYMOUS,
    MAX_RETRY_SECONDS,
    Places,
    Verdict,
    retry_after_seconds,
)

PLACES = st.builds(
    Places, st.integers(1, 6), st.integers(0, 6), st.one_of(st.none(), st.integers(1, 15))
)
REQUESTS = st.lists(st.tuples(st.sampled_from([ANONYMOUS, "ann", "bob"]), st.integers(1, 4)))


@given(PLACES, REQUESTS)
def test_places_are_never_oversold_and_shares_are_kept(
    places: Places, requests: list[tuple[str, int]]
) -> None:
    held: Counter[str] = Counter()
    for principal, num_wanted in requests:
        if places.judge(principal, num_wanted, held) is Verdict.ADMITTED:
            held[principal] += num_wanted
        assert held.total() <= places.total
        if places.max_per_principal is not None:
            assert held["ann"] <= places.max_per_principal
            assert held["bob"] <= places.max_per_principal


@given(PLACES, REQUESTS)
def test_anonymous_callers_alone_leave_one_share_free(
    places: Places, requests: list[tuple[str, int]]
) -> None:
    held: Counter[str] = Counter()
    for _, num_wanted in requests:
        if places.judge(ANONYMOUS, num_wanted, held) is Verdict.ADMITTED:
            held[ANONYMOUS] += num_wanted
    share = places.max_per_principal
    if share is not None and share < places.total:
        assert places.judge("ann", share, held) is Verdict.ADMITTED


@given(PLACES, st.sampled_from([ANONYMOUS, "ann"]), st.integers(1, 30))
def test_what_an_idle_model_refuses_it_refuses_for_ever(
    places: Places, principal: str, num_wanted: int
) -> None:
    assert places.judge(principal, num_wanted, {}) in (Verdict.ADMITTED, Verdict.NEVER)
    assert places.judge(principal, 1, {}) is Verdict.ADMITTED


def test_a_full_model_is_saturated_for_everybody_and_a_full_share_for_one() -> None:
    places = Places(max_in_flight=2, max_queue_depth=2, max_per_principal=2)
    assert places.judge("ann", 1, {"ann": 2}) is Verdict.OVER_SHARE
    assert places.judge("bob", 1, {"ann": 2}) is Verdict.ADMITTED
    assert places.judge("cid", 1, {"ann": 2, "bob": 2}) is Verdict.SATURATED
    assert places.judge(ANONYMOUS, 1, {"ann": 2, ANONYMOUS: 1}) is Verdict.ADMITTED
    assert places.judge(ANONYMOUS, 1, {"ann": 1, ANONYMOUS: 2}) is Verdict.OVER_SHARE


@pytest.mark.parametrize(
    ("mean_seconds", "num_ahead", "seconds"),
    [(0.0, 5, 1), (4.0, 1, 1), (4.0, 8, 8), (4.1, 8, 9), (60.0, 256, MAX_RETRY_SECONDS)],
)
def test_retry_after_grows_with_the_queue_within_bounds(
    mean_seconds: float, num_ahead: int, seconds: int
) -> None:
    assert retry_after_seconds(mean_seconds, num_ahead, max_in_flight=4) == seconds
