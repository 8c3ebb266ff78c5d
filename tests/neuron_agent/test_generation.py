"""What of a request reaches the device."""

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
from neuron_agent.generation import choose_sampling, prepare_prompt, tokenize_conversation
from neuron_agent.model_state import ModelState
from neuron_agent.model_text import ModelText, SamplingDefaults
from neuron_agent.protocol import LoadRequest
from neuron_agent.text.chat_template import ChatTemplate
from neuron_agent.wire.chat_request import ChatRequest, parse_chat_request
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer

PLAIN = parse_chat_request(b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}')
TEXT = ModelText(build_tokenizer(), ChatTemplate(TEMPLATE), stop_ids=(2,))
OWN = SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20)


def model_with(context_tokens: int) -> ModelState:
    model = ModelState(LoadRequest("m"), max_in_flight=1, max_queue_depth=0)
    model.text = TEXT
    model.become_ready(ModelReady("m", 1, context_tokens, context_tokens, "float32", 0.1))
    return model


async def num_prompt_tokens() -> int:
    return len((await prepare_prompt(model_with(1000), PLAIN)).token_ids)


def changed(**fields: object) -> ChatRequest:
    return msgspec.structs.replace(PLAIN, **fields)


def test_model_s_own_sampling_is_used_where_the_request_is_silent() -> None:
    sampling = choose_sampling(PLAIN, OWN)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.9, 20)


@given(st.floats(0, 2), st.floats(0, 1), st.integers(0, 100))
def test_request_s_word_wins_over_the_model_s(temperature: float, top_p: float, top_k: int) -> None:
    request = changed(temperature=temperature, top_p=top_p, top_k=top_k)
    sampling = choose_sampling(request, OWN)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (temperature, top_p, top_k)


async def test_prompt_that_leaves_room_for_one_token_is_taken_and_no_longer_one() -> None:
    size = await num_prompt_tokens()
    prompt = await prepare_prompt(model_with(size + 1), PLAIN)
    assert prompt.max_tokens == 1
    with pytest.raises(BadRequest, match=f"prompt is too long: {size} tokens > {size - 1} maximum"):
        await prepare_prompt(model_with(size), PLAIN)


async def test_answer_may_fill_what_remains_of_the_context() -> None:
    size = await num_prompt_tokens()
    model = model_with(size + 10)
    limits = [
        (await prepare_prompt(model, changed(max_tokens=asked))).max_tokens
        for asked in (None, 3, 10, 11, 10**9)
    ]
    assert limits == [10, 3, 10, 10, 10]


async def test_stop_tokens_are_left_out_on_request() -> None:
    model = model_with(1000)
    assert (await prepare_prompt(model, PLAIN)).stop_ids == [2]
    assert (await prepare_prompt(model, changed(ignores_stop_tokens=True))).stop_ids == []


async def test_big_prompt_takes_the_same_way_beside_the_loop() -> None:
    content = "one two three " * 1000
    conversation = msgspec.structs.replace(
        PLAIN.conversation,
        messages=[{"role": "user", "content": content}],
        body_bytes=len(content),
    )
    prompt = await prepare_prompt(model_with(10**6), changed(conversation=conversation))
    assert content in TEXT.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)


@pytest.mark.parametrize("num_messages", [1, 5000])
async def test_many_empty_messages_are_rendered_beside_the_loop(num_messages: int) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": ""}] * num_messages}
    conversation = parse_chat_request(msgspec.json.encode(body)).conversation
    recorder = ThreadRecorder()
    text = ModelText(recorder, TEXT.template, stop_ids=())  # type: ignore[arg-type]
    assert await tokenize_conversation(text, conversation) == [1]
    assert recorder.was_on_the_loop is (num_messages == 1)


class ThreadRecorder:
    """A tokenizer that notes where it was called."""

    was_on_the_loop: bool | None = None

    def encode_batch_fast(self, _texts: list[str], add_special_tokens: bool) -> list[Any]:
        self.was_on_the_loop = threading.current_thread() is threading.main_thread()
        return [SimpleNamespace(ids=[1])]


async def test_model_without_a_template_fails_the_request() -> None:
    model = model_with(1000)
    model.text = replace(TEXT, template=None)
    with pytest.raises(Exception, match="no chat template"):
        await prepare_prompt(model, PLAIN)
