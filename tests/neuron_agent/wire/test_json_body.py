"""Any bytes at all: an object, or a refusal with a sentence."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import BadRequest
from neuron_agent.wire.json_body import MAX_DEPTH, Body, check_range, decode, parse_object

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


class Inner(Body, frozen=True):
    size: int


class Outer(Body, frozen=True):
    name: str
    inner: list[Inner] | None = None


@given(st.binary())
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    with contextlib.suppress(BadRequest):
        assert isinstance(parse_object(data), dict)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=5))
def test_an_object_comes_as_it_was_sent(content: dict[str, Any]) -> None:
    assert parse_object(json.dumps(content).encode()) == content


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def test_nesting_is_bounded() -> None:
    assert parse_object(nested(MAX_DEPTH))
    with pytest.raises(BadRequest, match="deeper"):
        parse_object(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ({}, "name"),
        ({"name": 5}, "name"),
        ({"name": "a", "inner": 5}, "inner"),
        ({"name": "a", "inner": [{"size": 1}, {"size": "x"}]}, "inner[...].size"),
        ({"name": "a", "inner": [{}]}, "inner[...].size"),
    ],
)
def test_wrong_type_names_the_parameter(raw: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(raw, Outer)
    assert caught.value.param is not None
    assert caught.value.param.replace("[0]", "[...]").replace("[1]", "[...]") == param


def test_unknown_fields_and_null_are_welcome() -> None:
    assert decode({"name": "a", "inner": None, "new": {}}, Outer) == Outer("a")


@given(st.floats(allow_nan=False))
def test_range_is_inclusive(value: float) -> None:
    if 0 <= value <= 2:
        check_range("x", value, 0, 2)
    else:
        with pytest.raises(BadRequest):
            check_range("x", value, 0, 2)
