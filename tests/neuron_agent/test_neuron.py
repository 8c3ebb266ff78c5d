"""The whole neuron: front process, real device process, demo model."""

import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from neuron_agent.demo.texts import CONVERSATIONS, WEATHER_TOOL, Conversation
from tests.demo import demo_model_folder
from tests.demo_meaning import Meaning, meaning_of, message_meaning
from tests.neuron_agent.front import Front, data_frames, wait_until

# The model may have to be built first, which takes a minute on a machine that is not busy.
pytestmark = [pytest.mark.model, pytest.mark.e2e, pytest.mark.timeout(600)]

REAL_DEVICE = json.dumps([sys.executable, "-m", "neuron_agent.devices.process"])
SETTINGS = {"DEVICE_COMMAND": REAL_DEVICE, "DEVICES__CPU_MEMORY_MB": "800"}


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with Front(SETTINGS) as front:
        assert front.load(demo_model_folder(), "cortex-demo").status == 200
        yield front


def fields_of(conversation: Conversation) -> dict[str, object]:
    return {
        "model": "cortex-demo",
        "temperature": 0,
        "max_tokens": 400,
        "messages": list(conversation.messages),
        "tools": list(conversation.tools),
        "chat_template_kwargs": dict(conversation.chat_template_kwargs),
    }


def test_the_demo_model_s_conversations_word_for_word_all_at_once(front: Front) -> None:
    def ask(conversation: Conversation) -> Meaning:
        return streamed_meaning(front.stream(**fields_of(conversation)))

    with ThreadPoolExecutor(len(CONVERSATIONS)) as pool:
        replies = list(pool.map(ask, CONVERSATIONS))
    assert replies == [meaning_of(conversation.reply) for conversation in CONVERSATIONS]


def test_one_after_another_they_are_the_same(front: Front) -> None:
    for conversation in CONVERSATIONS:
        message = front.chat(**fields_of(conversation)).json["choices"][0]["message"]
        assert message_meaning(message) == meaning_of(conversation.reply)


def streamed_meaning(frames: list[bytes]) -> Meaning:
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in data_frames(frames):
        delta = chunk["choices"][0]["delta"]
        message["content"] += delta.get("content", "")
        message["reasoning_content"] += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                message["tool_calls"].append({"function": call["function"]})
            else:
                function = message["tool_calls"][call["index"]]["function"]
                function["arguments"] += call["function"]["arguments"]
    return message_meaning(message)


@pytest.mark.parametrize("streaming", [True, False])
def test_client_that_leaves_is_out_of_the_batch(front: Front, streaming: bool) -> None:
    def num_running() -> float:
        lines = front.ask("GET", "/metrics").body.decode().splitlines()
        prefix = 'neuron_requests_running{model="cortex-demo"} '
        return sum(float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix))

    fields = {"model": "cortex-demo", "stream": streaming, "ignore_eos": True}
    sock = front.open_chat("Hello!", **fields)
    wait_until(lambda: num_running() == 1, "the engine works on it")
    sock.close()
    wait_until(lambda: num_running() == 0, "the engine has let go of it")
    assert front.num_requests("cortex-demo") == 0


def test_killed_device_process_comes_back_with_its_model(front: Front) -> None:
    (pid,) = front.device_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: front.phase("cortex-demo") == "recovering", "the model is seen to be gone")
    wait_until(lambda: front.phase("cortex-demo") == "ready", "the model recovers by itself")
    conversation = CONVERSATIONS[0]
    assert front.chat(**fields_of(conversation)).text == conversation.reply


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_structures_are_enforced_on_a_model_that_would_say_something_else(front: Front) -> None:
    fields: dict[str, Any] = {"model": "cortex-demo", "temperature": 0, "max_tokens": 100}
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    person = json.loads(front.chat("Hello!", response_format=schema, **fields).text)
    assert person.keys() == {"name", "age"}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = front.chat("Hello!", tools=[WEATHER_TOOL], tool_choice=choice, **fields)
        (answered,) = answer.json["choices"]
        assert answered["finish_reason"] == "tool_calls"
        ((name, arguments),) = message_meaning(answered["message"]).calls
        assert name == "get_weather"
        assert arguments.keys() == {"city"}


def test_log_probabilities_belong_to_the_text(front: Front) -> None:
    answer = front.chat("Hello!", model="cortex-demo", temperature=0, logprobs=True, top_logprobs=3)
    content = answer.json["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == answer.text
    for each in content:
        assert each["top_logprobs"][0]["token"] == each["token"]  # greedy chose the best
        assert each["logprob"] <= 0


def test_token_outside_the_vocabulary_fails_alone(front: Front) -> None:
    body = {"model": "cortex-demo", "prompt": [5, 10**6]}
    answer = front.ask("POST", "/v1/completions", body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request")
    biased = front.chat("Hello!", model="cortex-demo", logit_bias={"1000000": 1})
    assert (biased.status, biased.error["code"]) == (400, "invalid_request")


def test_embeddings_are_of_length_one_and_tell_texts_apart(front: Front) -> None:
    body = {"model": "cortex-demo", "input": ["Hello!", "Hello!", "Count to ten."]}
    data = front.ask("POST", "/v1/embeddings", body).json["data"]
    first, same, other = (each["embedding"] for each in data)
    assert math.isclose(math.hypot(*first), 1.0, rel_tol=1e-3)
    assert math.dist(first, same) < 1e-2 < math.dist(first, other)
