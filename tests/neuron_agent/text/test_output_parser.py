"""Laws of output parsing, for every family: cuts do not matter, and nothing is lost or invented."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.pieces import CallArguments, CallStarted, Said, Thought
from tests.neuron_agent.text.outputs import (
    FORMATS,
    OUTPUTS,
    THINK,
    calls_of,
    merged,
    parse,
)

REASONING = OutputFormat(reasoning=THINK)
HERMES = OutputFormat(reasoning=THINK, tools=ToolFamily.HERMES)
CALL = '<tool_call>\n{"name": "ping", "arguments": {}}\n</tool_call>'


def cut(text: str, places: list[int]) -> list[str]:
    """Return the text in parts, some of which may be empty."""
    ends = [*sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@given(st.sampled_from(FORMATS), OUTPUTS, st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_where_an_output_is_cut_does_not_matter(
    output_format: OutputFormat, text: str, places: list[int], starts_reasoning: bool
) -> None:
    whole = parse(output_format, [text], starts_reasoning=starts_reasoning)
    parts = parse(output_format, cut(text, places), starts_reasoning=starts_reasoning)
    characters = parse(output_format, list(text), starts_reasoning=starts_reasoning)
    assert whole == parts == characters


@given(st.sampled_from(FORMATS), st.text() | OUTPUTS, st.booleans())
def test_pieces_are_in_order_and_calls_are_numbered(
    output_format: OutputFormat, text: str, starts_reasoning: bool
) -> None:
    pieces = parse(output_format, list(text), starts_reasoning=starts_reasoning)
    assert all(
        not isinstance(piece, Said | Thought | CallArguments) or piece.text for piece in pieces
    )
    started = -1
    for piece in pieces:
        match piece:
            case CallStarted(index, name):
                started += 1
                assert index == started
                assert name
            case CallArguments(index, _):
                assert index == started
            case Thought(_):
                assert piece is pieces[0]


@given(st.sampled_from(FORMATS), st.text() | OUTPUTS)
def test_what_is_said_is_in_the_output_in_the_same_order(
    output_format: OutputFormat, text: str
) -> None:
    position = 0
    for piece in parse(output_format, list(text)):
        if isinstance(piece, Said | Thought):
            position = text.index(piece.text, position) + len(piece.text)


@given(st.sampled_from(FORMATS), OUTPUTS)
def test_an_output_without_a_call_is_given_back_whole(
    output_format: OutputFormat, text: str
) -> None:
    pieces = parse(output_format, list(text))
    if all(isinstance(piece, Said) for piece in pieces):
        expected = text
        if output_format.reasoning and text.lstrip(" \n").startswith("<think>"):
            expected = text.split("<think>", 1)[1].lstrip("\n").removeprefix("</think>")
            expected = expected.lstrip("\n")
        assert "".join(piece.text for piece in pieces) == expected


@given(OUTPUTS)
def test_without_tools_markers_are_text(text: str) -> None:
    output_format = OutputFormat(tools=ToolFamily.HERMES)
    assert parse(output_format, list(text), tools=[]) == ([Said(text)] if text else [])


@given(st.sampled_from(FORMATS), st.text(alphabet="abc.{ ", min_size=1))
def test_plain_text_comes_at_once(output_format: OutputFormat, text: str) -> None:
    parser = output_format.new_parser(starts_reasoning=False, tools=[])
    shown = "".join(piece.text for piece in parser.feed(text) if isinstance(piece, Said))
    may_open = output_format.reasoning is not None and not text.strip()
    assert shown == ("" if may_open else text)


@pytest.mark.parametrize(
    ("text", "starts", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, [Thought("hm"), Said("Yes.")]),
        ("hm\n</think>\n\nYes.", True, [Thought("hm"), Said("Yes.")]),
        ("<think>\nhm</think>Yes.", True, [Thought("hm"), Said("Yes.")]),
        ("\n<think>hm</think> Yes.", False, [Thought("hm"), Said(" Yes.")]),
        ("<think>\n\n</think>\n\nYes.", False, [Said("Yes.")]),
        ("<think>\na\n\nb\n", False, [Thought("a\n\nb\n")]),
        ("hm", True, [Thought("hm")]),
        (" hm", True, [Thought(" hm")]),
        ("Write <think> and </think>.", False, [Said("Write <think> and </think>.")]),
        ("\n<thinking> is", False, [Said("\n<thinking> is")]),
        ("<think>a</think>b</think><think>c", False, [Thought("a"), Said("b</think><think>c")]),
        ("<thi", False, [Said("<thi")]),
        ("<think>a</thi", False, [Thought("a</thi")]),
    ],
)
def test_reasoning_is_told_from_the_answer(text: str, starts: bool, expected: list[Any]) -> None:
    assert parse(REASONING, list(text), starts_reasoning=starts) == expected


def test_reasoning_streams() -> None:
    parser = REASONING.new_parser(starts_reasoning=True, tools=[])
    assert parser.is_reasoning
    assert parser.feed("one ") == [Thought("one ")]
    assert parser.feed("two\n</th") == [Thought("two")]
    assert parser.feed("ink>\n") == []
    assert not parser.is_reasoning
    assert parser.feed("\nsaid") == [Said("said")]


def test_without_marks_nothing_is_reasoning() -> None:
    parser = OutputFormat().new_parser(starts_reasoning=True, tools=[])
    assert not parser.is_reasoning
    assert parser.feed("<think>a</think>") == [Said("<think>a</think>")]


def test_text_around_calls_is_said_and_the_space_next_to_them_is_markup() -> None:
    text = f"<think>\nhm\n</think>\n\nFirst.\n{CALL}\n{CALL}\nThen \n\n{CALL}\n"
    pieces = parse(HERMES, list(text))
    assert [piece for piece in pieces if isinstance(piece, Said | Thought)] == [
        Thought("hm"),
        Said("First."),
        Said("\nThen"),
    ]
    assert calls_of(pieces) == [("ping", {})] * 3


def test_a_call_streams_name_first_then_arguments_as_they_come() -> None:
    parser = HERMES.new_parser(starts_reasoning=False, tools=[{"function": {"name": "f"}}])
    assert parser.feed('Let me see.\n<tool_call>\n{"name": "f", ') == [Said("Let me see.")]
    assert parser.feed('"arguments": {"a') == [CallStarted(0, "f"), CallArguments(0, '{"a')]
    assert parser.feed('": "x') == [CallArguments(0, '": "x')]
    assert parser.feed('y"}') == [CallArguments(0, 'y"}')]
    assert merged([*parser.feed("}\n</tool_call>"), *parser.finish()]) == []


@given(st.sampled_from(FORMATS), st.text(max_size=20), st.booleans())
def test_after_the_end_there_is_nothing_more(
    output_format: OutputFormat, text: str, starts_reasoning: bool
) -> None:
    parser = output_format.new_parser(starts_reasoning=starts_reasoning, tools=[])
    parser.feed(text)
    parser.finish()
    assert parser.finish() == []
