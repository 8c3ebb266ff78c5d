"""An item shows what it collected, and tells of it the same way."""

from collections.abc import Callable

import pytest

from inference.wire.responses.items import (
    FunctionCall,
    Item,
    Message,
    Reasoning,
    SummarizedReasoning,
)

BUILDERS: list[Callable[[], Item]] = [
    lambda: Message("msg_1"),
    lambda: FunctionCall("fc_1", "call_1", "f"),
    lambda: Reasoning("rs_1", is_carried=True),
    lambda: SummarizedReasoning("rs_1", is_carried=True),
]


@pytest.mark.parametrize("build", BUILDERS)
def test_an_item_begins_empty_and_ends_with_all_its_pieces(build: Callable[[], Item]) -> None:
    item = build()
    assert "'so'" not in repr([item.shown("in_progress"), *item.opening()])
    item.pieces += ["s", "o"]
    for event in item.closing():
        assert "'so'" in repr(event)
    assert "'so'" in repr(item.shown("completed"))


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("status", ["in_progress", "completed", "incomplete"])
def test_an_item_says_how_far_it_is(build: Callable[[], Item], status: str) -> None:
    item = build()
    item.pieces.append("so")
    assert item.shown(status)["status"] == status


@pytest.mark.parametrize("build", BUILDERS)
def test_all_events_name_their_item(build: Callable[[], Item]) -> None:
    item = build()
    for event in [*item.opening(), item.delta(), *item.closing()]:
        assert event["item_id"] == item.shown("completed")["id"]
