"""Embedding requests, and vectors on their way out."""

import base64
import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import BadRequest
from neuron_agent.wire.embeddings import (
    EmbeddingRequest,
    encode_embeddings,
    parse_embedding_request,
    shorten,
)

VECTORS = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8)


def parse(**fields: Any) -> EmbeddingRequest:
    return parse_embedding_request(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def test_input_is_text_or_token_ids_one_or_several() -> None:
    assert parse().inputs == ("hi",)
    assert parse(input=[[1, 2], "a"]).inputs == ((1, 2), "a")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.param == param


@given(VECTORS, st.integers(1, 8))
def test_shortened_vector_points_the_same_way_and_has_length_one(
    vector: list[float], dimensions: int
) -> None:
    if dimensions > len(vector):
        with pytest.raises(BadRequest):
            shorten(vector, dimensions)
        return
    found = shorten(vector, dimensions)
    assert len(found) == dimensions
    if dimensions < len(vector) and any(abs(value) > 1e-6 for value in vector[:dimensions]):
        assert math.isclose(math.hypot(*found), 1.0)
        scale = math.hypot(*vector[:dimensions])
        assert all(math.isclose(a * scale, b) for a, b in zip(found, vector, strict=False))


@given(VECTORS)
def test_both_encodings_carry_the_same_numbers(vector: list[float]) -> None:
    def shown(encoding_format: str) -> Any:
        request = parse(encoding_format=encoding_format)
        return json.loads(encode_embeddings(request, [vector], 3))["data"][0]["embedding"]

    data = base64.b64decode(shown("base64"))
    assert list(struct.unpack(f"<{len(vector)}f", data)) == vector == shown("float")


def test_answer_has_openai_s_shape() -> None:
    body = json.loads(encode_embeddings(parse(input=["a", "b"]), [[1.0], [-1.0]], 7))
    assert body["object"] == "list"
    assert [(each["object"], each["index"]) for each in body["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
