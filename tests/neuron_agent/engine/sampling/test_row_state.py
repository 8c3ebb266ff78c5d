import pytest
from llguidance import LLMatcher, LLTokenizer

from neuron_agent.engine.sampling.drawing import DrawParameters
from neuron_agent.engine.sampling.edits import EditParameters, LogitEdits
from neuron_agent.engine.sampling.grammar import Matcher
from neuron_agent.engine.sampling.row_state import GrammarLeft, RowState
from tests.neuron_agent.tiny_model import build_tokenizer

GREEDY = DrawParameters(0.0, 1.0, 0, 0)
TOKENIZER = build_tokenizer()
A, B = (TOKENIZER.token_to_id(letter) for letter in "ab")


def matcher(lark: str) -> Matcher:
    tokenizer = LLTokenizer(TOKENIZER.to_str(), eos_token=2)
    return Matcher(LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark)), tokenizer)


def test_stop_tokens_are_forbidden_until_enough_has_come() -> None:
    state = RowState(GREEDY, num_prompt_tokens=10, stop_ids=[4], min_tokens=2)
    forbidden = [list(state.draw_at(position).forbidden_ids) for position in (10, 11, 12)]
    assert forbidden == [[4], [4], []]


def test_a_grammar_alone_says_when_a_text_may_end() -> None:
    state = RowState(GREEDY, 10, stop_ids=[4], min_tokens=2, matcher=matcher('start: "a"'))
    assert state.draw_at(10).forbidden_ids == ()


def test_a_token_moves_all_that_is_kept() -> None:
    edits = LogitEdits(EditParameters(presence=1.0), [])
    state = RowState(GREEDY, 1, edits=edits, matcher=matcher('start: "ab"'))
    state.take(A)
    assert list(edits.ids) == [A]
    assert not state.is_finished
    state.take(B)
    assert state.is_finished


def test_leaving_the_grammar_raises() -> None:
    with pytest.raises(GrammarLeft):
        RowState(GREEDY, 1, matcher=matcher('start: "ab"')).take(B)


def test_without_a_grammar_nothing_is_ever_finished() -> None:
    state = RowState(GREEDY, 1)
    state.take(A)
    assert not state.is_finished


def test_why_there_is_no_token() -> None:
    followed = matcher('start: "ab"')
    assert "may be chosen" in RowState(GREEDY, 1).why_no_token
    assert RowState(GREEDY, 1, matcher=followed).why_no_token == "the grammar leaves no token"
    followed.take(B)
    assert "any further" in RowState(GREEDY, 1, matcher=followed).why_no_token
