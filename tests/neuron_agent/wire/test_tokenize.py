"""What /tokenize and /detokenize take."""

import json
from typing import Any

import pytest

from neuron_agent.errors import BadRequest
from neuron_agent.wire.tokenize import parse_detokenize_request, parse_tokenize_request


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_a_prompt_or_a_conversation() -> None:
    prompt = parse_tokenize_request(body(prompt="hi"))
    assert (prompt.prompt, prompt.adds_special_tokens, prompt.conversation) == ("hi", True, None)
    talk = parse_tokenize_request(body(messages=[{"role": "user", "content": "hi"}]))
    assert talk.conversation is not None
    with pytest.raises(BadRequest, match="prompt or messages"):
        parse_tokenize_request(body())


def test_tokens_are_ids() -> None:
    assert parse_detokenize_request(body(tokens=[1, 2])).token_ids == (1, 2)
    for tokens in ([-1], [2**31], ["a"], "a", None):
        with pytest.raises(BadRequest):
            parse_detokenize_request(body(tokens=tokens))
