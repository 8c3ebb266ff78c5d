import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.planner.actions import Refusal, RefusalCode
from fleet.planner.backoff import cooldown_seconds, is_only_cooling_down
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


def refusals(*codes: RefusalCode) -> list[Refusal]:
    return [Refusal(f"n{number}", code) for number, code in enumerate(codes)]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((), False),
        ((RefusalCode.COOLING_DOWN,), True),
        ((RefusalCode.CORDONED,), False),
        ((RefusalCode.COOLING_DOWN, RefusalCode.DEVICE_TOO_SMALL), True),
        ((RefusalCode.COOLING_DOWN, RefusalCode.BUSY_VICTIMS), False),
    ],
)
def test_a_failed_load_is_final_if_no_other_neuron_may_yet_take_it(
    codes: tuple[RefusalCode, ...], expected: bool
) -> None:
    assert is_only_cooling_down(refusals(*codes)) is expected


@LAW
@given(st.lists(st.sampled_from(RefusalCode)), st.sampled_from(RefusalCode))
def test_another_neuron_takes_hope_from_nobody(codes: list[RefusalCode], code: RefusalCode) -> None:
    """Only one that failed too, or first, makes a case hopeless that was not."""
    if code is not RefusalCode.COOLING_DOWN and not is_only_cooling_down(refusals(*codes)):
        assert not is_only_cooling_down(refusals(*codes, code))
