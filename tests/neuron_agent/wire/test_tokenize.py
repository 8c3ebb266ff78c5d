"""What /tokenize and /detokenize take."""

import json
from typing import Any

import pytest

from neuron_agent.errors import BadRequest
from neuron_agent.protocol import LoadRequest
from neuron_agent.wire.tokenize import (
    encode_tokens,
    parse_detokenize_request,
    parse_tokenize_request,
)


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_a_prompt_or_a_conversation() -> None:
    prompt = parse_tokenize_request(body(prompt="hi"))
    assert (prompt.prompt, prompt.adds_special_tokens, prompt.conversation) == ("hi", True, None)
    talk = parse_tokenize_request(body(messages=[{"role": "user", "content": "hi"}]))
    assert talk.conversation is not None
    with pytest.raises(BadRequest, match="prompt or messages"):
        parse_tokenize_request(body())


def test_where_the_model_is_may_be_said_as_for_a_load() -> None:
    plain = parse_tokenize_request(body(prompt="hi", source=None))
    assert plain.model == LoadRequest("m")
    wanted = {"source": "/m", "revision": "main", "quant": "Q8_0"}
    said = parse_tokenize_request(body(prompt="hi", **wanted))
    assert said.model == LoadRequest("m", "/m", "main", quant="Q8_0")
    with pytest.raises(BadRequest, match="source"):
        parse_tokenize_request(body(prompt="hi", source=5))


def test_tokens_are_left_out_for_who_only_counts() -> None:
    talk = {"messages": [{"role": "user", "content": "hi"}]}
    asked = [None, True, False]
    told = [parse_tokenize_request(body(**talk, return_tokens=a)).returns_tokens for a in asked]
    assert told == [True, True, False]
    answer = json.loads(encode_tokens([5, 6], 7))
    assert answer == {"count": 2, "max_model_len": 7, "tokens": [5, 6]}
    counted = json.loads(encode_tokens([5, 6], None, returns_tokens=False))
    assert counted == {"count": 2, "max_model_len": None}


def test_tokens_are_ids() -> None:
    assert parse_detokenize_request(body(tokens=[1, 2])).token_ids == (1, 2)
    for tokens in ([-1], [2**31], ["a"], "a", None):
        with pytest.raises(BadRequest):
            parse_detokenize_request(body(tokens=tokens))
