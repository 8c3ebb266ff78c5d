from itertools import count
from typing import Any

import msgspec
import pytest

from neuron_agent.devices.channel import Sampling, Submit
from neuron_agent.engine.intake import Intake
from neuron_agent.engine.refusals import RequestRefused
from neuron_agent.protocol import ErrorCode

PLAIN = Submit("a", "m", [1, 2, 3], 10, [4, 10**9], principal="somebody")


@pytest.fixture
def intake() -> Intake:
    seeds = count(100)
    return Intake(vocabulary_size=50, most_tokens=20, fresh_seed=lambda: next(seeds))


def asking(**asked: Any) -> Submit:
    return msgspec.structs.replace(PLAIN, **asked)


def test_a_request_is_what_was_submitted(intake: Intake) -> None:
    request = intake.request_of(PLAIN, now=3.0)
    assert (request.request_id, request.prompt_ids) == ("a", (1, 2, 3))
    assert (request.max_tokens, request.stop_ids) == (10, {4, 10**9})
    assert (request.submitted_at, request.principal) == (3.0, "somebody")
    assert not request.is_embedding


@pytest.mark.parametrize("max_tokens", [18, 10**12])
def test_max_tokens_is_clipped_to_the_room_there_is(intake: Intake, max_tokens: int) -> None:
    assert intake.request_of(asking(max_tokens=max_tokens), 0.0).max_tokens == 17


def test_an_embedding_may_fill_the_context(intake: Intake) -> None:
    whole = asking(prompt_ids=[1] * 20, wants_embedding=True, max_tokens=0)
    assert intake.request_of(whole, 0.0).is_embedding
    for wrong in (asking(prompt_ids=[1] * 20), asking(prompt_ids=[1] * 21, wants_embedding=True)):
        with pytest.raises(RequestRefused) as caught:
            intake.request_of(wrong, 0.0)
        assert caught.value.code == ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_a_seed_is_the_caller_s_or_a_fresh_one(intake: Intake) -> None:
    fresh = [intake.row_state_of(PLAIN).parameters.seed for _ in range(2)]
    assert fresh == [100, 101]
    asked = asking(sampling=Sampling(seed=7))
    assert intake.row_state_of(asked).parameters.seed == 7


def test_who_asks_for_nothing_keeps_nothing(intake: Intake) -> None:
    state = intake.row_state_of(PLAIN)
    assert state.edits is None
    assert list(state.stop_ids) == [4], "only tokens with a logit can be forbidden"


def test_what_is_asked_for_arrives(intake: Intake) -> None:
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, presence_penalty=1.0)
    state = intake.row_state_of(asking(sampling=sampling, num_logprobs=2, min_tokens=4))
    assert state.parameters.at(0)[:4] == (0.5, 3, 0.9, 0.1)
    assert state.edits is not None
    assert (state.num_logprobs, state.min_tokens) == (2, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_ids": []},
        {"prompt_ids": [50]},
        {"prompt_ids": [-1]},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"num_logprobs": 21},
        {"sampling": Sampling(logit_bias={50: 1.0})},
    ],
)
def test_what_could_trip_the_device_is_refused(intake: Intake, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as caught:
        intake.request_of(asking(**wrong), 0.0)
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_parameters_that_mean_nothing_are_refused(intake: Intake) -> None:
    for sampling in (Sampling(temperature=-1.0), Sampling(repetition_penalty=0.0)):
        with pytest.raises(RequestRefused):
            intake.row_state_of(asking(sampling=sampling))
