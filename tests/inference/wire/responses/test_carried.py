"""What was packed comes out again; what others wrote does not."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.responses import carried


@given(st.text())
def test_a_text_comes_back(text: str) -> None:
    assert carried.unpack(carried.pack(text)) == text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "gAAAAABo",
        "not base64 \N{BOMB}",
        base64.b64encode(b"cortex").decode(),
        carried.pack("abc") + "!",
        carried.pack("abc")[:-1],
        base64.b64encode(b"cortex-1:\xff\xff\xff").decode(),
    ],
)
def test_what_others_wrote_is_nothing(content: str) -> None:
    assert carried.unpack(content) is None
