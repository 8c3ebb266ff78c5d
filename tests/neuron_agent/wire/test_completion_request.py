"""Text completion requests as clients send them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import BadRequest
from neuron_agent.wire.completion_request import (
    CompletionRequest,
    Prompt,
    parse_completion_request,
    parse_prompts,
)


def parse(**fields: Any) -> CompletionRequest:
    return parse_completion_request(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def test_a_prompt_is_text_or_token_ids_one_or_several() -> None:
    assert parse().prompts == ("hi",)
    assert parse(prompt=["a", "b"]).prompts == ("a", "b")
    assert parse(prompt=[1, 2]).prompts == ((1, 2),)
    assert parse(prompt=[[1], [2, 3], "a"]).prompts == ((1,), (2, 3), "a")


def test_sixteen_tokens_are_made_unless_said_otherwise() -> None:
    assert parse().sampling.max_tokens == 16
    assert parse(max_tokens=5).sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 65, "n": 2}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_neutral_values_are_welcome() -> None:
    request = parse(echo=False, suffix=None, best_of=2, n=2, logprobs=None, user="me")
    assert request.sampling.num_choices == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=5))
def test_any_list_gives_prompts_or_an_error_that_names_the_field(given_prompt: list[Any]) -> None:
    found = outcome(given_prompt)
    if isinstance(found, BadRequest):
        assert (found.param or "").startswith("prompt")
    else:
        assert found
        assert all(isinstance(prompt, str) or prompt for prompt in found)


def outcome(given_prompt: list[Any]) -> tuple[Prompt, ...] | BadRequest:
    try:
        return parse_prompts(given_prompt, "prompt")
    except BadRequest as error:
        return error
