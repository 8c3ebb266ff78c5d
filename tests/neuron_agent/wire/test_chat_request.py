"""Requests as clients send them, to requests the neuron can act on."""

import json
from typing import Any

import pytest

from neuron_agent.errors import BadRequest
from neuron_agent.wire.chat_request import ChatRequest, JsonForm, parse_chat_request
from neuron_agent.wire.conversation import ForcedCall
from neuron_agent.wire.sampling_fields import SamplingFields

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}, "defer": 1}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def test_what_is_not_said_is_none() -> None:
    request = parse()
    assert request.sampling == SamplingFields()
    assert (request.num_logprobs, request.answer_form) == (None, None)
    assert not request.is_streaming


def test_null_is_absence() -> None:
    fields = ("stream", "stop", "tools", "seed", "max_tokens", "stream_options", "tool_choice")
    assert parse(**dict.fromkeys(fields)) == parse()


def test_the_newer_name_of_max_tokens_wins() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


def test_logprobs_are_counted_from_none_over_the_chosen_one_to_the_best() -> None:
    assert parse(logprobs=False).num_logprobs is None
    assert parse(logprobs=True).num_logprobs == 0
    assert parse(logprobs=True, top_logprobs=3).num_logprobs == 3


def test_formats_of_the_answer() -> None:
    schema = {"type": "array"}

    def form(**response_format: Any) -> object:
        return parse(response_format=response_format).answer_form

    assert form(type="text") is None
    assert form(type="json_object") == JsonForm({"type": "object"})
    assert form(type="json_schema", json_schema={"schema": schema}) == JsonForm(schema)
    strict = {"name": "list", "strict": True, "schema": schema}
    assert form(type="json_schema", json_schema=strict) == JsonForm(schema, is_strict=True)
    assert form(type="json_schema", json_schema={}) == JsonForm({"type": "object"})


def test_a_call_that_is_forced_leaves_no_text_to_format() -> None:
    json_object = {"type": "json_object"}
    request = parse(tools=[TOOL], tool_choice="required", response_format=json_object)
    assert request.answer_form == ForcedCall(None)
    for choice in ("auto", "none"):
        request = parse(tools=[TOOL], tool_choice=choice, response_format=json_object)
        assert request.answer_form == JsonForm({"type": "object"})


def test_calls_are_parallel_unless_that_is_switched_off() -> None:
    assert parse().allows_parallel_calls
    assert parse(parallel_tool_calls=None).allows_parallel_calls
    assert not parse(parallel_tool_calls=False).allows_parallel_calls


@pytest.mark.parametrize("fields", [{"functions": [{}]}, {"function_call": {"name": "f"}}])
def test_what_tools_have_replaced_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", next(iter(fields)))
