"""Pages of models: walked either way they are the whole list, and its edges are named."""

import pytest
from anthropic.types import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.anthropic.models import ModelEntry, model_body, model_list
from inference.wire.errors import InvalidRequest

lists = st.integers(0, 12).map(
    lambda count: [
        ModelEntry(f"org/m{number}", f"M {number}", "2026-01-02T03:04:05Z")
        for number in range(count)
    ]
)


@given(lists, st.integers(1, 5))
def test_walking_forward_gives_every_model_once(entries: list[ModelEntry], limit: int) -> None:
    found: list[str] = []
    query = {"limit": str(limit)}
    while True:
        page = model_list(entries, query)
        found += [model["id"] for model in page["data"]]
        assert len(page["data"]) <= limit
        assert page["has_more"] == (len(found) < len(entries))
        if not page["has_more"]:
            break
        query["after_id"] = page["last_id"]
    assert found == [entry.name for entry in entries]


@given(lists.filter(bool), st.integers(1, 5))
def test_walking_back_gives_all_before_the_last_once(entries: list[ModelEntry], limit: int) -> None:
    found: list[str] = []
    query = {"limit": str(limit), "before_id": entries[-1].name}
    while True:
        page = model_list(entries, query)
        found = [model["id"] for model in page["data"]] + found
        assert page["has_more"] == (len(found) < len(entries) - 1)
        if not page["has_more"]:
            break
        query["before_id"] = page["first_id"]
    assert found == [entry.name for entry in entries[:-1]]


def test_a_page_without_models_has_no_edges() -> None:
    empty = {"data": [], "has_more": False, "first_id": None, "last_id": None}
    assert model_list([], {}) == empty


def test_twenty_come_unless_asked_otherwise() -> None:
    entries = [ModelEntry(f"m{number}", "M", "2026-01-02T03:04:05Z") for number in range(21)]
    page = model_list(entries, {})
    assert (len(page["data"]), page["has_more"]) == (20, True)
    assert (page["first_id"], page["last_id"]) == ("m0", "m19")
    assert len(model_list(entries, {"limit": "1000"})["data"]) == 21


@pytest.mark.parametrize(
    ("query", "param"),
    [
        *(
            ({"limit": bad}, "limit")
            for bad in ("0", "1001", "-1", "x", "", "1.5", "٣", "9" * 5000)
        ),
        ({"after_id": "nobody"}, "after_id"),
        ({"before_id": "nobody"}, "before_id"),
        ({"after_id": "org/m", "before_id": "org/m"}, "after_id"),
    ],
)
def test_a_wrong_query_is_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        model_list([ModelEntry("org/m", "M", "2026-01-02T03:04:05Z")], query)
    assert raised.value.param == param


@pytest.mark.parametrize("limits", [(None, None), (4096, 1024)])
def test_the_sdk_reads_a_model(limits: tuple[int | None, int | None]) -> None:
    entry = ModelEntry("org/m", "M", "2026-01-02T03:04:05Z", *limits)
    model = ModelInfo.model_validate(model_body(entry))
    assert (model.id, model.lifecycle, model.created_at.year) == ("org/m", "active", 2026)
    assert (model.max_input_tokens, model.max_tokens) == limits
