"""What an answer says of itself: counts that add up, why it ended, signatures."""

import pytest
from hypothesis import given

from inference.wire.anthropic.facts import AnswerFacts, Thoughts, ending, usage_body
from inference.wire.events import Finished
from neuron_agent.protocol import Usage
from tests.inference.wire.anthropic.events import HEAD, usage_of, usages

USAGE = Usage(10, 3, 4, 1)


@given(usages())
def test_the_counts_of_input_add_up_to_the_prompt(usage: Usage) -> None:
    body = usage_body(usage)
    assert usage_of(body) == usage
    assert body["cache_read_input_tokens"] == usage.cached_tokens
    assert body["cache_creation_input_tokens"] == 0


def test_no_more_was_cached_than_was_read() -> None:
    assert usage_of(usage_body(Usage(3, 1, 4))) == Usage(3, 1, 3)


@pytest.mark.parametrize(
    ("finished", "reason"),
    [
        (Finished("stop", USAGE), "end_turn"),
        (Finished("stop", USAGE, "\nEND"), "stop_sequence"),
        (Finished("length", USAGE), "max_tokens"),
        (Finished("tool_calls", USAGE), "tool_use"),
        (Finished("content_filter", USAGE), "refusal"),
        (Finished("something_newer", USAGE), "end_turn"),
    ],
)
def test_an_answer_says_why_it_ended(finished: Finished, reason: str) -> None:
    told = ending(finished)
    assert (told["stop_reason"], told["stop_sequence"]) == (reason, finished.stop_sequence)
    details = {"type": "refusal", "category": None, "explanation": None}
    assert told["stop_details"] == (details if reason == "refusal" else None)


def test_a_signature_is_the_same_each_time_and_each_blocks_own() -> None:
    facts = AnswerFacts(HEAD, "m", Thoughts.SHOWN)
    assert facts.signature(0) == AnswerFacts(HEAD, "m", Thoughts.OMITTED).signature(0)
    assert facts.signature(0) != facts.signature(1)
