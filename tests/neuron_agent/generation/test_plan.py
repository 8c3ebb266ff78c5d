"""What of a request reaches the device, and what is refused before."""

import json
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.devices.channel import ModelReady
from neuron_agent.errors import BadRequest
from neuron_agent.generation.plan import (
    choose_sampling,
    plan_chat,
    plan_completion,
    tokenize_conversation,
)
from neuron_agent.model_state import ModelState
from neuron_agent.protocol import LoadRequest
from neuron_agent.sources.model_text import ModelText, SamplingDefaults
from neuron_agent.text.chat_template import ChatTemplate
from neuron_agent.wire.chat_request import ChatRequest, parse_chat_request
from neuron_agent.wire.completion_request import parse_completion_request
from neuron_agent.wire.sampling_fields import SamplingFields
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer

TEXT = ModelText(build_tokenizer(), ChatTemplate(TEMPLATE), stop_ids=(2,))
OWN = SamplingDefaults(0.6, top_p=0.9, top_k=20, min_p=0.1, repetition_penalty=1.2)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def chat(content: str = "hi", **fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": content}]
    return parse_chat_request(json.dumps({"model": "m", "messages": messages, **fields}).encode())


def model_with(context_tokens: int, kv_tokens: int = 10**9) -> ModelState:
    model = ModelState(LoadRequest("m"), max_in_flight=1, max_queue_depth=0)
    model.text = TEXT
    model.become_ready(ModelReady("m", 1, context_tokens, kv_tokens, "float32", 0.1))
    return model


async def num_prompt_tokens() -> int:
    return len((await plan_chat(model_with(1000), chat())).token_ids)


# --- sampling ------------------------------------------------------------------------------------


def test_model_s_own_sampling_is_used_where_the_request_is_silent() -> None:
    sampling = choose_sampling(SamplingFields(), OWN)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)


@given(
    st.builds(
        SamplingFields,
        temperature=st.floats(0, 2),
        top_p=st.floats(0, 1),
        top_k=st.integers(0, 100),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(0.1, 2),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100)),
        seed=st.integers(0, 2**63 - 1),
    )
)
def test_request_s_word_wins_over_the_model_s(fields: SamplingFields) -> None:
    sampling = choose_sampling(fields, OWN)
    for name in sampling.__struct_fields__:
        assert getattr(sampling, name) == getattr(fields, name)


async def test_choices_of_one_prompt_have_seeds_in_a_row() -> None:
    plan = await plan_chat(model_with(1000), chat(seed=2**63 - 1, n=3))
    seeds = [plan.sampling_of(number).seed for number in range(3)]
    assert seeds == [2**63 - 1, 0, 1]
    unseeded = await plan_chat(model_with(1000), chat(n=2))
    assert unseeded.sampling_of(1).seed is None


# --- lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limited_by", ["model", "cache"])
async def test_prompt_that_leaves_room_for_one_token_is_taken_and_no_longer_one(
    limited_by: str,
) -> None:
    def limited(tokens: int) -> ModelState:
        return model_with(tokens) if limited_by == "model" else model_with(10**6, tokens)

    size = await num_prompt_tokens()
    assert (await plan_chat(limited(size + 1), chat())).max_tokens == 1
    model = limited(size)
    with pytest.raises(BadRequest, match=f"prompt is too long: {size} tokens > {size - 1} maximum"):
        await plan_chat(model, chat())
    assert model.rejected == {"context_length_exceeded": 1}


async def test_answer_may_fill_what_remains_of_the_context() -> None:
    size = await num_prompt_tokens()
    model = model_with(size + 10)
    limits = [
        (await plan_chat(model, chat(max_tokens=asked))).max_tokens
        for asked in (None, 3, 10, 11, 10**9)
    ]
    assert limits == [10, 3, 10, 10, 10]


async def test_least_tokens_are_no_more_than_there_is_room_for() -> None:
    size = await num_prompt_tokens()
    plan = await plan_chat(model_with(size + 10), chat(min_tokens=50))
    assert (plan.min_tokens, plan.max_tokens) == (10, 10)


# --- stops ---------------------------------------------------------------------------------------


async def test_stop_tokens_are_the_model_s_and_the_request_s() -> None:
    model = model_with(1000)
    assert (await plan_chat(model, chat())).stop_ids == [2]
    assert (await plan_chat(model, chat(ignore_eos=True))).stop_ids == []
    assert (await plan_chat(model, chat(stop_token_ids=[7, 2]))).stop_ids == [2, 7]
    assert (await plan_chat(model, chat(stop_token_ids=[7], ignore_eos=True))).stop_ids == [7]


# --- structures ----------------------------------------------------------------------------------


async def test_structure_becomes_a_grammar() -> None:
    model = model_with(1000)
    assert (await plan_chat(model, chat())).grammar is None
    schema = {"type": "object", "properties": {"unmistakable": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert "unmistakable" in ((await plan_chat(model, chat(response_format=wanted))).grammar or "")
    forced = await plan_chat(model, chat(tools=[TOOL], tool_choice="required"))
    assert "tool_call" in (forced.grammar or "")
    assert (await plan_chat(model, chat(tools=[TOOL]))).grammar is None


SWITCHES = "{% if enable_thinking is defined and enable_thinking %}{{ '<think>' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "thinking", "may_think"),
    [
        (TEMPLATE, None, True),
        (TEMPLATE, True, True),
        (TEMPLATE, False, False),  # closes the reasoning in the prompt
        (TEMPLATE.replace("enable_thinking", "other_switch"), None, True),
        (SWITCHES + TEMPLATE.split("{% if enable")[0], None, False),  # thinks only if asked to
        (SWITCHES + TEMPLATE.split("{% if enable")[0], True, True),
    ],
)
async def test_model_thinks_before_a_structure_only_where_it_would_anyway(
    template: str, thinking: bool | None, may_think: bool
) -> None:
    model = model_with(1000)
    model.text = replace_template(TEXT, template)
    extra = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
    wanted = chat(response_format={"type": "json_object"}, **extra)
    grammar = (await plan_chat(model, wanted)).grammar or ""
    assert (f"<[{TEXT.tokenizer.token_to_id('<think>')}]>" in grammar) is may_think


def replace_template(text: ModelText, template: str) -> ModelText:
    return ModelText(text.tokenizer, ChatTemplate(template), text.stop_ids)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"type": "nonsense"}},
                }
            },
            "response_format",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"enum": ["x" * 100_000]}},
                }
            },
            "response_format",
        ),
        (
            {
                "tools": [
                    {
                        "function": {
                            "name": "f",
                            "parameters": {"properties": {"a": {"type": "nonsense"}}},
                        }
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
async def test_structure_that_cannot_be_enforced_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        await plan_chat(model_with(10**6), chat(**fields))
    assert caught.value.param == param


# --- text completions ----------------------------------------------------------------------------


async def test_completions_take_texts_and_tokens_and_read_nothing_into_the_answer() -> None:
    data = json.dumps({"model": "m", "prompt": ["the fox", [5, 6]], "logprobs": 2}).encode()
    first, second = await plan_completion(model_with(1000), parse_completion_request(data))
    assert TEXT.tokenizer.decode(first.token_ids) == "the fox"
    assert second.token_ids == [5, 6]
    assert first.reading is second.reading is None
    assert (first.max_tokens, first.num_logprobs) == (16, 2)


async def test_empty_prompt_is_refused() -> None:
    request = parse_completion_request(b'{"model": "m", "prompt": ""}')
    with pytest.raises(BadRequest) as caught:
        await plan_completion(model_with(1000), request)
    assert caught.value.param == "prompt"


# --- where the work is done ----------------------------------------------------------------------


@pytest.mark.parametrize("num_messages", [1, 5000])
async def test_conversations_are_rendered_beside_the_loop(num_messages: int) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": ""}] * num_messages}
    conversation = parse_chat_request(msgspec.json.encode(body)).conversation
    recorder = ThreadRecorder()
    text = ModelText(recorder, TEXT.template, stop_ids=())  # type: ignore[arg-type]
    assert await tokenize_conversation(text, conversation) == [1]
    assert recorder.was_on_the_loop is False


class ThreadRecorder:
    """A tokenizer that notes where it was called."""

    was_on_the_loop: bool | None = None

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def encode_batch_fast(self, _texts: list[str], add_special_tokens: bool) -> list[Any]:
        self.was_on_the_loop = threading.current_thread() is threading.main_thread()
        return [SimpleNamespace(ids=[1])]


async def test_model_without_a_template_fails_the_request() -> None:
    model = model_with(1000)
    model.text = replace(TEXT, template=None)
    with pytest.raises(Exception, match="no chat template"):
        await plan_chat(model, chat())
