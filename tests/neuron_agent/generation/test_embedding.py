"""Embeddings over HTTP, from a device whose vectors tell the prompt's length."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.fakes.fake_device import CONTEXT_TOKENS
from tests.neuron_agent.front import Answer, Front, wait_until
from tests.neuron_agent.tiny_model import write_model

pytestmark = pytest.mark.slow

INPUTS = ["a" * length for length in (1, 5, 2, 9, 1, 3, 3, 7, 2, 4, 6, 8)]


@pytest.fixture(scope="module")
def running_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny")
    with Front({"MAX_IN_FLIGHT": "2", "MAX_QUEUE_DEPTH": "2"}) as front:
        assert front.load(folder).status == 200
        yield front


@pytest.fixture
def front(running_front: Front) -> Iterator[Front]:
    yield running_front
    running_front.hang_up()
    wait_until(lambda: running_front.num_requests() == 0, "every place is given back")


def ask(front: Front, given: Any, **fields: Any) -> Answer:
    return front.ask("POST", "/v1/embeddings", {"model": "org/tiny", "input": given, **fields})


def num_tokens(front: Front, text: str) -> int:
    return int(front.ask("POST", "/tokenize", {"model": "org/tiny", "prompt": text}).json["count"])


def test_vectors_come_in_the_order_of_the_inputs(front: Front) -> None:
    body = ask(front, INPUTS).json
    sizes = [num_tokens(front, text) for text in INPUTS]
    assert [each["embedding"][0] for each in body["data"]] == sizes
    assert body["usage"] == {"prompt_tokens": sum(sizes), "total_tokens": sum(sizes)}


def test_the_sdk_takes_them(front: Front) -> None:
    base_url = f"http://127.0.0.1:{front.port}/v1"
    with OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(model="org/tiny", input=["a", "bb"])  # asks for base64
        plain = client.embeddings.create(
            model="org/tiny", input=["a", "bb"], encoding_format="float"
        )
    assert [each.embedding for each in answer.data] == [each.embedding for each in plain.data]
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens


def test_token_ids_are_taken_as_they_are(front: Front) -> None:
    body = ask(front, [[5, 6, 7], [8]]).json
    assert [each["embedding"][0] for each in body["data"]] == [3.0, 1.0]


def test_fewer_dimensions_have_length_one_again(front: Front) -> None:
    (data,) = ask(front, "a", dimensions=2).json["data"]
    assert len(data["embedding"]) == 2
    assert math.isclose(math.hypot(*data["embedding"]), 1.0)
    refused = ask(front, "a", dimensions=5)
    assert (refused.status, refused.error["param"]) == (400, "dimensions")


def test_input_longer_than_the_context_is_refused_before_any_work(front: Front) -> None:
    refused = ask(front, ["a", [5] * CONTEXT_TOKENS])
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")


def test_saturated_model_refuses_at_once(front: Front) -> None:
    for _ in range(4):
        front.open_chat("QUEUED")
    wait_until(lambda: front.num_requests() == 4, "all places are taken")
    assert ask(front, "a").status == 503


def test_place_that_is_left_is_enough_for_many_inputs(front: Front) -> None:
    for _ in range(3):
        front.open_chat("QUEUED")
    wait_until(lambda: front.num_requests() == 3, "one place is left")
    assert len(ask(front, INPUTS).json["data"]) == len(INPUTS)
