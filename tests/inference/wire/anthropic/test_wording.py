"""A refusal says where and what in one line, as Anthropic words it."""

from typing import Literal

import msgspec
import pytest

from inference.wire.anthropic import wording
from inference.wire.errors import InvalidRequest


class Inner(msgspec.Struct):
    name: str


class Outer(msgspec.Struct):
    items: list[Inner | None] = []
    number: int = 0
    kind: Literal["a", "b"] = "a"


decoder = msgspec.json.Decoder(Outer)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b'{"items":[{}]}', "items.0.name: Field required", "items.0.name"),
        (
            b'{"items":[null,{"name":3}]}',
            "items.1.name: Expected `str`, got `int`",
            "items.1.name",
        ),
        (b'{"number":"x"}', "number: Expected `int`, got `str`", "number"),
        (b"[]", "Expected `object`, got `array`.", None),
        (b"{", "The body is not valid JSON: Input data was truncated.", None),
        (b"\xff", "The body is not valid UTF-8.", None),
        (
            b'{"x":' + b"[" * 64 + b"]" * 64 + b"}",
            "The body is nested more than 64 levels deep.",
            None,
        ),
    ],
)
def test_a_wrong_body_is_refused_in_words(body: bytes, message: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        wording.decode(body, decoder)
    assert (raised.value.message, raised.value.param) == (message, param)


def test_a_refusal_does_not_repeat_all_that_was_sent() -> None:
    long = "x" * 10_000
    with pytest.raises(InvalidRequest) as raised:
        wording.decode(msgspec.json.encode({"kind": long}), msgspec.json.Decoder(Outer))
    assert raised.value.param == "kind"
    assert len(raised.value.message) < 600


def test_a_right_body_is_read() -> None:
    assert wording.decode(b'{"items":[{"name":"x"}],"new":1}', decoder) == Outer([Inner("x")])
