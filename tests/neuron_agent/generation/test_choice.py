"""A device's outputs to a choice's events: what is said, thought and called, and where it ends."""

import math
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.devices.channel import Output, Sampling, TokenLogprob
from neuron_agent.generation.choice import Choice
from neuron_agent.generation.plan import Plan, Reading
from neuron_agent.sources.model_text import ModelText
from neuron_agent.text.chat_template import ChatTemplate
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceFinished,
    ReasoningDelta,
    TextDelta,
    TokenLogprobs,
    Tokens,
    ToolArgumentsDelta,
    ToolCallStarted,
)
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer

TEXT = ModelText(build_tokenizer(), ChatTemplate(TEMPLATE), stop_ids=(2,))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
READING = Reading(starts_reasoning=False, tools=[TOOL])


def new_choice(reading: Reading | None = READING, index: int = 0, **fields: Any) -> Choice:
    ids = count(1)
    plan = Plan([1], max_tokens=10**6, sampling=Sampling(), reading=reading, **fields)
    return Choice(index, plan, TEXT, lambda: f"call_{next(ids)}")


def tokens_of(text: str) -> list[int]:
    return list(TEXT.tokenizer.encode(text, add_special_tokens=False).ids)


def run(choice: Choice, text: str, finish: str = "stop", at_once: int = 1) -> list[ChatEvent]:
    """Feed a text token by token, or a few at once, until the choice is complete."""
    events: list[ChatEvent] = []
    ids = tokens_of(text)
    for start in range(0, len(ids), at_once):
        some = ids[start : start + at_once]
        events += choice.take(Output("r", some, logprobs=[TokenLogprob(-1.0) for _ in some]))
        if choice.finish_reason is not None:
            return events
    return [*events, *choice.take(Output("r", [], finish=finish, num_generated=len(ids) + 1))]


def said(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def thought(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, ReasoningDelta))


def calls(events: list[ChatEvent]) -> list[tuple[str, str, str]]:
    """Return id, name and arguments of each call."""
    started = [event for event in events if isinstance(event, ToolCallStarted)]
    deltas = [event for event in events if isinstance(event, ToolArgumentsDelta)]
    return [
        (call.id, call.name, "".join(d.text for d in deltas if d.index == call.index))
        for call in started
    ]


def test_thoughts_text_and_calls_come_apart() -> None:
    choice = new_choice()
    events = run(choice, f"<think>\nhm\n</think>\n\nLet me.\n{CALL}")
    assert (thought(events), said(events)) == ("hm", "Let me.")
    assert calls(events) == [("call_1", "f", '{"a": 1}')]
    assert events[-1] == ChoiceFinished("tool_calls")
    assert choice.num_reasoning_tokens == len(tokens_of("<think>\nhm\n</think>"))


def test_several_calls_have_ids_of_their_own() -> None:
    assert [call[0] for call in calls(run(new_choice(), f"{CALL}\n{CALL}"))] == ["call_1", "call_2"]


def test_where_calls_are_not_parallel_the_second_one_ends_the_choice() -> None:
    choice = new_choice(Reading(False, [TOOL], allows_parallel_calls=False))
    events = run(choice, f"{CALL}\n{CALL}")
    assert len(calls(events)) == 1
    assert events[-1] == ChoiceFinished("tool_calls")
    assert choice.num_tokens < 2 * len(tokens_of(CALL))


def test_answer_cut_by_length_says_so_even_with_a_call() -> None:
    assert run(new_choice(), CALL, finish="length")[-1] == ChoiceFinished("length")


def test_without_a_reading_markup_is_text() -> None:
    text = f"<think>\nhm\n</think>\n\n{CALL}"
    assert said(run(new_choice(reading=None), text)) == text


def test_reasoning_that_the_prompt_has_opened() -> None:
    events = run(new_choice(Reading(starts_reasoning=True)), "hm</think>yes")
    assert (thought(events), said(events)) == ("hm", "yes")


def test_stop_string_ends_what_is_said() -> None:
    choice = new_choice(stops=("END",))
    events = run(choice, "one END two")
    assert said(events) == "one "
    assert (choice.finish_reason, choice.stop_sequence) == ("stop", "END")


def test_answer_that_ended_by_itself_names_no_stop_string() -> None:
    choice = new_choice(stops=("END",))
    run(choice, "one EN")
    assert (choice.finish_reason, choice.stop_sequence) == ("stop", None)


def test_stop_string_means_nothing_in_thoughts_and_arguments() -> None:
    call = CALL.replace("1", '"END"')
    events = run(new_choice(stops=("END",)), f"<think>END</think>so END{call}")
    assert (thought(events), said(events)) == ("END", "so ")
    events = run(new_choice(stops=("END",)), f"<think>END</think>so {call}")
    assert calls(events) == [("call_1", "f", '{"a": "END"}')]


def test_text_that_could_have_become_a_stop_string_comes_before_the_call_behind_it() -> None:
    events = run(new_choice(stops=("END",)), f"so EN{CALL}")
    kinds = [type(event) for event in events if not isinstance(event, Tokens)]
    assert said(events) == "so EN"
    assert kinds.index(ToolCallStarted) > max(i for i, k in enumerate(kinds) if k is TextDelta)


def test_ids_stand_before_the_events_they_are_behind() -> None:
    events = run(new_choice(index=3), "ab")
    assert events[0] == Tokens(tuple(tokens_of("a")), 3)
    assert events[1] == TextDelta("a", 3)
    assert events[-1] == ChoiceFinished("stop", 3)


WORDS = st.text(st.sampled_from('ab <>/{}"\nthik_cl🙂é'), max_size=30)


@given(WORDS, st.integers(1, 5))
def test_nothing_of_plain_text_is_lost_however_it_comes(text: str, at_once: int) -> None:
    assert said(run(new_choice(reading=None), text, at_once=at_once)) == text


@given(st.text(st.sampled_from("ab🙂é日 \n"), max_size=30), st.integers(1, 5), st.booleans())
def test_token_texts_joined_are_the_text(text: str, at_once: int, has_stop: bool) -> None:
    stops = ("b\n",) if has_stop else ()
    events = run(new_choice(num_logprobs=0, stops=stops), text, at_once=at_once)
    data = b"".join(each.chosen.utf8 for each in logprobs_of(events))
    assert data.decode(errors="replace").startswith(said(events))
    last = logprobs_of(events)[-1].chosen.utf8 if data else b""
    assert len(data) - len(last) < len(said(events).encode()) or not data  # none that is not shown
    if not has_stop:
        assert data.decode() == text


def test_log_probabilities_are_of_what_is_said_alone() -> None:
    events = run(new_choice(num_logprobs=0), f"<think>\nhm\n</think>\n\nyes, so\n{CALL}")
    assert "".join(each.chosen.text for each in logprobs_of(events)).strip() == "yes, so"


def logprobs_of(events: list[ChatEvent]) -> list[TokenLogprobs]:
    return [each for event in events if isinstance(event, TextDelta) for each in event.logprobs]


def test_stages_follow_the_device() -> None:
    choice = new_choice()
    assert choice.stage == "queued"
    choice.take(Output("r", [], prefill_done=3))
    assert (choice.stage, choice.prefill_done) == ("prefill", 3)
    choice.take(Output("r", tokens_of("a"), cached_tokens=2, queue_ms=1.0, prefill_ms=2.0))
    assert choice.stage == "decode"
    assert (choice.cached_tokens, choice.queue_ms, choice.prefill_ms) == (2, 1.0, 2.0)


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_tokens_are_counted_with_the_one_that_stopped_them(finish: str) -> None:
    choice = new_choice()
    run(choice, "abc", finish=finish)
    assert choice.num_tokens == 4


def test_token_that_cannot_be_has_a_number_for_its_log_probability() -> None:
    chance = TokenLogprob(-math.inf, [(0, -math.inf)])
    output = Output("r", tokens_of("x"), logprobs=[chance])
    (told,) = logprobs_of(new_choice(num_logprobs=1).take(output))
    assert told.chosen.logprob == told.top[0].logprob == -9999.0
