"""Operations are charged before they are carried out, by what they would make."""

from datetime import datetime
from typing import Any

import pytest

from neuron_agent.text.sandbox import charges
from neuron_agent.text.sandbox.budget import TooMuch, budgeted


class Ledger:
    """Takes what is charged in place of a budget."""

    def __init__(self) -> None:
        self.steps = self.characters = 0

    def take(self, steps: int = 1, characters: int = 0) -> None:
        self.steps += steps
        self.characters += characters


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    made = Ledger()
    monkeypatch.setattr(charges, "take", made.take)
    return made


@pytest.mark.parametrize(
    ("operator", "left", "right", "made"),
    [
        ("+", "abc", "de", "abcde"),
        ("*", "abc", 4, "abc" * 4),
        ("*", 4, "abc", "abc" * 4),
        ("*", "abc", -1, ""),
        ("%", "%s-%s", ("abc", "de"), "abc-de"),
    ],
)
def test_an_operation_is_charged_at_least_what_it_makes(
    ledger: Ledger, operator: str, left: Any, right: Any, made: str
) -> None:
    charges.charge_operation(operator, left, right)
    assert ledger.characters >= len(made)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("abcab".replace, ("a", "xyz")),
        ("abc".replace, ("", "xyz")),
        ("--".join, (["a", "b", "c"],)),
        ("--".join, ("abc",)),
        ("a".ljust, (20,)),
        ("a".rjust, (20, "x")),
        ("a".zfill, (20,)),
        ("a\tb".expandtabs, (20,)),
        ("{} and {}".format, ("abc", "de")),
        ("abc".upper, ()),
    ],
)
def test_a_text_method_is_charged_at_least_what_it_makes(
    ledger: Ledger, method: Any, arguments: tuple[Any, ...]
) -> None:
    charges.charge_call(method, arguments)
    assert ledger.characters >= len(method(*arguments))


def test_numbers_stay_small() -> None:
    with budgeted(datetime.now):
        charges.charge_operation("**", 2, 1000)
        charges.charge_operation("*", 2**1000, 2**1000)
        charges.charge_operation("**", 2.0, 10**9)
        with pytest.raises(TooMuch):
            charges.charge_operation("**", 2, 10**9)
        with pytest.raises(TooMuch):
            charges.charge_operation("*", 2**3000, 2**3000)


def test_a_filter_is_charged_for_what_it_is_given_and_what_it_makes(ledger: Ledger) -> None:
    charges.metered("list", list)(range(70))
    assert ledger.steps >= 140
    charges.metered("upper", str.upper)("a" * 50)
    assert ledger.characters >= 50
