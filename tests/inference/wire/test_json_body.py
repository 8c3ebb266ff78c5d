"""What no dialect may let through: bad encoding, depth, numbers and escapes, unpacked or not."""

import gzip
import json
import threading
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire import json_body
from inference.wire.errors import InvalidRequest, RequestTooLarge
from inference.wire.json_body import MAX_BODY_BYTES, MAX_DEPTH


class Roles(msgspec.Struct):
    roles: list[Literal["user"]]


class Loose(msgspec.Struct):
    model: str = ""


decoder = msgspec.json.Decoder(Loose)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(json_values, st.integers(1, 8))
def test_depth_is_what_a_full_parse_would_find(value: object, limit: int) -> None:
    body = json.dumps({"x": value}).encode()
    expected = depth_of({"x": value}) > limit
    assert json_body._is_deeper_than(body, limit) is expected


@given(st.text(alphabet=st.characters(), max_size=10))
def test_escaped_text_without_lone_surrogates_passes(text: str) -> None:
    body = json.dumps({"x": text}).encode()
    is_lone = any(0xD800 <= ord(char) <= 0xDFFF for char in text)
    assert json_body._has_lone_surrogate(body) is is_lone


def nested(depth: int) -> bytes:
    return b'{"x":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_the_deepest_allowed_body_passes() -> None:
    json_body.decode(nested(MAX_DEPTH), decoder)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"x":NaN}',
        b'{"x":Infinity}',
        b'{"x":-Infinity}',
        b'{"x":"\xff"}',
        b'{"x":"\xed\xa0\x80"}',
        b'{"x":"\\ud800"}',
        b'{"x":"\\udc00 alone"}',
        b'{"x":"\\ud83d\\u0041"}',
        b'{"x":01}',
        b'{"x":1} trailing',
        b"\xef\xbb\xbf{}",
        nested(MAX_DEPTH + 1),
        nested(500_000),
    ],
)
def test_a_bad_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        json_body.decode(body, decoder)


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":"\\ud83d\\ude00"}',
        b'{"x":"\\\\ud800"}',  # a backslash and letters
        b'{"x":"' + b"[" * 200 + b'"}',
        b'{"x":"\\"' + b"[" * 200 + b'"}',
        b'{"x":"\\u0000"}',
        b'{"x":1e3}',
    ],
)
def test_a_good_body_passes(body: bytes) -> None:
    json_body.decode(body, decoder)


def test_a_wrong_type_names_the_parameter() -> None:
    with pytest.raises(InvalidRequest) as raised:
        json_body.decode(b'{"model":1}', decoder)
    assert raised.value.param == "model"


@pytest.mark.parametrize(
    ("part", "param"), [(b'{"model":1}', "input[3].model"), (b"1", "input[3]")]
)
def test_a_part_is_named_by_its_place_in_the_body(part: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        json_body.decode_part(msgspec.Raw(part), decoder, "input[3]")
    assert raised.value.param == param
    assert f"`$.{param}`" in raised.value.message


def test_a_long_value_is_not_all_told_back() -> None:
    body = json.dumps({"roles": ["x" * 1_000_000]}).encode()
    with pytest.raises(InvalidRequest) as raised:
        json_body.decode(body, msgspec.json.Decoder(Roles))
    assert raised.value.param == "roles[0]"
    assert raised.value.message.endswith(" - at `$.roles[0]`.")
    assert len(raised.value.message) < 600


def test_a_part_lacking_a_field_is_named_with_it() -> None:
    class Needy(msgspec.Struct):
        model: str

    with pytest.raises(InvalidRequest) as raised:
        json_body.decode_part(msgspec.Raw(b"{}"), msgspec.json.Decoder(Needy), "tools[0]")
    assert raised.value.param == "tools[0].model"


def test_gzip_is_unpacked() -> None:
    assert json_body.unpack(gzip.compress(b"{}"), "gzip") == b"{}"
    assert json_body.unpack(b"{}", "identity") == b"{}"


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"{}", "br"),
        (b"no gzip", "gzip"),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip"),
    ],
)
def test_a_bad_encoding_is_refused(body: bytes, encoding: str) -> None:
    with pytest.raises(InvalidRequest):
        json_body.unpack(body, encoding)


def test_a_bomb_is_refused_by_what_it_unfolds_to() -> None:
    with pytest.raises(RequestTooLarge):
        json_body.unpack(gzip.compress(bytes(MAX_BODY_BYTES + 1), 1), "gzip")


def test_others_get_their_turn_while_depth_is_counted() -> None:
    body = b"[" * 50 + b"[]," * 900_000 + b"1" + b"]" * 50
    counting = threading.Thread(target=json_body._is_deeper_than, args=(body, MAX_DEPTH))
    turns = 0
    counting.start()
    while counting.is_alive():
        counting.join(0.001)
        turns += 1
    assert turns > 10


def test_a_body_of_nothing_but_brackets_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "MAX_OPENED", 100)
    decoder = msgspec.json.Decoder()
    json_body.decode(b"[" + b",".join([b"[]"] * 99) + b"]", decoder)
    with pytest.raises(InvalidRequest, match="more than 100 brackets"):
        json_body.decode(b"[" + b",".join([b"[]"] * 100) + b"]", decoder)
