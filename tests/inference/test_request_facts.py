"""What the record says of a request, from what was seen of it."""

from datetime import UTC, datetime

import pytest

from inference.request_facts import RequestFacts
from inference.wire.errors import UpstreamError
from neuron_agent.protocol import Usage
from tests.inference.world import a_neuron, a_placement


def some_facts() -> RequestFacts:
    return RequestFacts("r", "chat", datetime(2026, 1, 1, tzinfo=UTC), began=100.0)


def test_a_streams_speed_counts_the_tokens_after_the_first() -> None:
    facts = some_facts()
    facts.streaming = True
    facts.first_token = 101.0
    facts.usage = Usage(5, 21)
    facts.ended = 103.0
    record = facts.record()
    assert (record.ttft_seconds, record.latency_seconds) == (1.0, 3.0)
    assert record.tokens_per_second == pytest.approx(10.0)


def test_a_whole_answers_speed_leaves_the_load_out() -> None:
    facts = some_facts()
    facts.first_token = 110.0  # all of its tokens are sent at once
    facts.usage = Usage(5, 20)
    facts.load_wait_seconds = 8.0
    facts.ended = 110.0
    assert facts.record().tokens_per_second == pytest.approx(10.0)


@pytest.mark.parametrize("usage", [None, Usage(5, 0), Usage(5, 1)])
def test_without_a_gap_between_tokens_there_is_no_speed(usage: Usage | None) -> None:
    facts = some_facts()
    facts.streaming = True
    facts.first_token = 101.0
    facts.usage = usage
    facts.ended = 103.0
    assert facts.record().tokens_per_second is None


def test_the_client_is_told_of_the_placement_once_there_is_one() -> None:
    facts = some_facts()
    facts.cold_start = True
    assert facts.headers == [(b"x-cortex-cold-start", b"true")]
    facts.note_attempt(a_placement(id=12), a_neuron("http://x", name="beast"))
    assert dict(facts.headers) == {
        b"x-cortex-cold-start": b"true",
        b"x-cortex-neuron": b"beast",
        b"x-cortex-placement": b"12",
    }


def test_an_error_leaves_its_status_and_code() -> None:
    facts = some_facts()
    facts.note_error(UpstreamError("x"))
    facts.ended = 100.5
    record = facts.record()
    assert (record.status, record.error_code) == (502, "upstream_error")
