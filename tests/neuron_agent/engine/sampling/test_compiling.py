from collections.abc import Iterator

import pytest
from llguidance import LLMatcher

from neuron_agent.engine.sampling.compiling import (
    PATIENCE_SECONDS,
    CompilingRequests,
    Entry,
    Refused,
)
from neuron_agent.engine.sampling.drawing import DrawParameters
from neuron_agent.engine.sampling.grammar import GrammarCompiler, GrammarRefused, Vocabulary
from neuron_agent.engine.sampling.row_state import RowState
from neuron_agent.scheduling.request import Request
from tests.neuron_agent.tiny_model import build_tokenizer

TOKENIZER = build_tokenizer()
LETTERS = LLMatcher.grammar_from_lark('start: "ab"')


def make_request(name: str = "a") -> Request:
    return Request(name, (1,), 10, frozenset({5}), submitted_at=0.0)


def make_state() -> RowState:
    return RowState(DrawParameters(1.0, 1.0, 0, 0), 1)


@pytest.fixture
def requests() -> Iterator[CompilingRequests]:
    compiler = GrammarCompiler(lambda: Vocabulary(TOKENIZER.to_str(), (2,)))
    requests = CompilingRequests(compiler)
    yield requests
    requests.close()


def settled(requests: CompilingRequests) -> Entry | Refused:
    requests.wait(30.0)
    (one,) = requests.settle(now=1.0)
    assert len(requests) == 0
    return one


def test_a_request_leaves_with_its_matcher_and_the_tokens_that_end_it(
    requests: CompilingRequests,
) -> None:
    state = make_state()
    requests.add(make_request(), state, LETTERS, now=0.0)
    assert len(requests) == 1
    one = settled(requests)
    assert isinstance(one, Entry)
    assert one.state is state
    assert state.matcher is not None
    assert one.request.stop_ids == {2, 5}


def test_a_wrong_grammar_is_the_caller_s_fault(requests: CompilingRequests) -> None:
    requests.add(make_request(), make_state(), "hello {", now=0.0)
    one = settled(requests)
    assert isinstance(one, Refused)
    assert not one.is_fault


def test_a_vocabulary_that_fails_is_ours_and_tells_nothing() -> None:
    def broken() -> Vocabulary:
        raise OSError("/home/somebody/secret")

    requests = CompilingRequests(GrammarCompiler(broken))
    requests.add(make_request(), make_state(), LETTERS, now=0.0)
    one = settled(requests)
    assert isinstance(one, Refused)
    assert one.is_fault
    assert "secret" not in one.why
    requests.close()


def test_patience_has_an_end() -> None:
    class Never(GrammarCompiler):
        def _work(self) -> None:
            """Take no job."""

    requests = CompilingRequests(Never(lambda: Vocabulary(TOKENIZER.to_str(), (2,))))
    requests.add(make_request(), make_state(), LETTERS, now=0.0)
    assert requests.settle(PATIENCE_SECONDS - 1) == []
    (one,) = requests.settle(PATIENCE_SECONDS)
    assert isinstance(one, Refused)
    assert "too long" in one.why


def test_who_waits_for_the_same_grammar_is_told_the_same_when_it_is_given_up() -> None:
    class Never(GrammarCompiler):
        def _work(self) -> None:
            """Take no job."""

    requests = CompilingRequests(Never(lambda: Vocabulary(TOKENIZER.to_str(), (2,))))
    requests.add(make_request("a"), make_state(), LETTERS, now=0.0)
    requests.add(make_request("b"), make_state(), LETTERS, now=1.0)
    for one in requests.settle(PATIENCE_SECONDS):
        assert isinstance(one, Refused)
        assert not one.is_fault
        assert "too long" in one.why
    assert len(requests) == 0


def test_who_leaves_is_gone(requests: CompilingRequests) -> None:
    request = make_request()
    requests.add(request, make_state(), LETTERS, now=0.0)
    assert requests.cancel("a") is request
    assert requests.cancel("a") is None
    assert requests.settle(0.0) == []


def test_without_a_compiler_no_request_waits() -> None:
    with pytest.raises(GrammarRefused):
        CompilingRequests(None).add(make_request(), make_state(), LETTERS, now=0.0)
