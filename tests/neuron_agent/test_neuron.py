"""The whole neuron: front process, real device process, demo model."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from neuron_agent.demo.texts import CONVERSATIONS, Conversation
from tests.demo import demo_model_folder
from tests.neuron_agent.front import Front, text_of, wait_until

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
    def ask(conversation: Conversation) -> str:
        return text_of(front.stream(**fields_of(conversation)))

    with ThreadPoolExecutor(len(CONVERSATIONS)) as pool:
        replies = list(pool.map(ask, CONVERSATIONS))
    assert replies == [conversation.reply for conversation in CONVERSATIONS]


def test_one_after_another_they_are_the_same(front: Front) -> None:
    for conversation in CONVERSATIONS[:3]:
        assert front.chat(**fields_of(conversation)).text == conversation.reply


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
