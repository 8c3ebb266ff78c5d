"""Llama's bare objects: calls only where they can be meant as such."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.pieces import Said
from tests.neuron_agent.text.outputs import JSON_OBJECTS, THINK, TOOLS, calls_of, parse, said

LLAMA = OutputFormat(reasoning=THINK, tools=ToolFamily.LLAMA)
NAMES = st.sampled_from(["get_weather", "ping"])


def written(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "parameters": arguments}, ensure_ascii=False)


@given(st.lists(st.tuples(NAMES, JSON_OBJECTS), min_size=1, max_size=3), st.booleans())
def test_calls_come_out_exactly(calls: list[tuple[str, Any]], has_tag: bool) -> None:
    text = "; ".join(written(name, arguments) for name, arguments in calls)
    pieces = parse(LLAMA, list(f"<|python_tag|>{text}" if has_tag else f"\n{text}\n"))
    assert calls_of(pieces) == calls
    assert said(pieces) == ""


def test_a_call_may_follow_reasoning() -> None:
    pieces = parse(LLAMA, list(f"<think>hm</think>\n{written('ping', {})}"))
    assert calls_of(pieces) == [("ping", {})]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "parameters": {}}',
        '{"name": "ping"}',
        ' {"name": "ping", "age": 3}',
        '{"answer": {"name": "ping", "parameters": {}}}',
        'So: {"name": "ping", "parameters": {}}',
        "<|python_tag|>print(1)",
        '<|python_tag|>{"name": "ping"}',
        "{",
        "",
    ],
)
def test_other_objects_are_text_verbatim(text: str) -> None:
    assert parse(LLAMA, list(text)) == ([Said(text)] if text else [])


def test_an_answer_in_json_is_not_held_back_until_its_end() -> None:
    parser = LLAMA.new_parser(starts_reasoning=False, tools=TOOLS)
    assert parser.feed('{"answer": [1,') == [Said('{"answer": [1,')]


def test_behind_the_tag_any_name_is_a_call() -> None:
    pieces = parse(LLAMA, list(f"Look:\n<|python_tag|>{written('search', {'q': 1})}"))
    assert calls_of(pieces) == [("search", {"q": 1})]
    assert said(pieces) == "Look:"


def test_text_after_calls_is_said_whole() -> None:
    pieces = parse(LLAMA, list(f"{written('ping', {})}; {{no"))
    assert calls_of(pieces) == [("ping", {})]
    assert said(pieces) == "; {no"
