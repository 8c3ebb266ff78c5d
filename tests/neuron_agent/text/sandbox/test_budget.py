"""A budget is of one rendering, and a value is measured without walking into it forever."""

from datetime import datetime
from typing import Any

import pytest

from neuron_agent.text.sandbox.budget import (
    MAX_CHARACTERS,
    MAX_STEPS,
    TooMuch,
    budgeted,
    size_of,
    take,
)


def test_steps_add_up_within_one_rendering() -> None:
    with budgeted(datetime.now):
        take(steps=MAX_STEPS)
        with pytest.raises(TooMuch, match="steps"):
            take()
    with budgeted(datetime.now):
        take(steps=MAX_STEPS)


def test_characters_add_up_within_one_rendering() -> None:
    with budgeted(datetime.now):
        take(characters=MAX_CHARACTERS)
        with pytest.raises(TooMuch, match="characters"):
            take(characters=1)


def test_one_text_may_not_take_more_than_all_even_outside_a_rendering() -> None:
    take(characters=MAX_CHARACTERS)
    with pytest.raises(TooMuch):
        take(characters=MAX_CHARACTERS + 1)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("abc", (1, 3)),
        (7, (1, 0)),
        ([], (1, 0)),
        (["a", ("bc", {"d": "e"})], (7, 5)),
        ({"a": {"b": [1, 2]}}, (7, 2)),
    ],
)
def test_all_parts_of_a_value_count(value: Any, size: tuple[int, int]) -> None:
    assert size_of(value) == size


def test_a_value_without_end_is_too_much() -> None:
    endless: list[Any] = []
    endless.append(endless)
    doubled: list[Any] = [1]
    for _ in range(60):
        doubled = [doubled, doubled]
    for value in (endless, doubled):
        with pytest.raises(TooMuch):
            size_of(value)
