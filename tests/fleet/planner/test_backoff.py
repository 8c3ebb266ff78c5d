from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.backoff import cooldown_seconds
from tests.fleet.planner.fleets import LAW


def test_the_pause_doubles_from_ten_seconds_to_five_minutes() -> None:
    pauses = [cooldown_seconds(num_failures) for num_failures in range(1, 9)]
    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]


def test_there_is_no_pause_before_the_first_failure() -> None:
    assert cooldown_seconds(0) == 0


@LAW
@given(st.integers(-5, 10**9))
def test_another_failure_never_shortens_the_pause(num_failures: int) -> None:
    assert 0 <= cooldown_seconds(num_failures) <= cooldown_seconds(num_failures + 1) <= 300
