"""Raw JSON values end where they end, and what is none is told from what is."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.json_reader import decode, read_string, stream_value
from neuron_agent.text.reader import TextReader, Wait
from tests.neuron_agent.text.outputs import JSON_VALUES


def run(text: str, reading: Any) -> tuple[Any, str]:
    """Return what a reading of this text gives, character by character, and what it left."""
    reader, results = TextReader(), []

    def read() -> Wait[None]:
        results.append((yield from reading(reader)))
        rest = []
        while char := (yield from reader.take()):
            rest.append(char)
        results.append("".join(rest))

    running = read()
    for char in text:
        reader.feed(char)
        next(running, None)
    reader.end()
    next(running, None)
    return results[0], results[1]


def value(text: str) -> tuple[str, bool, str]:
    """Return the value as it was emitted, whether it is whole, and the text after it."""
    emitted: list[str] = []
    is_whole, rest = run(text, lambda reader: stream_value(reader, emitted.append))
    return "".join(emitted), is_whole, rest


@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_a_value_ends_where_it_ends(content: Any, ascii_only: bool, indent: int | None) -> None:
    raw = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
    for rest in (", 1", "}", "</tool_call>", " x"):
        assert value(raw + rest) == (raw, True, rest)


@given(st.text(), st.booleans())
def test_a_string_is_decoded(content: str, ascii_only: bool) -> None:
    raw = json.dumps(content, ensure_ascii=ascii_only)
    assert run(raw + " x", read_string) == (content, " x")


@pytest.mark.parametrize("text", ["", "1", '"a', '"a\\', '"\\x"', '"line\nbreak"', "'a'"])
def test_what_is_no_string_is_none(text: str) -> None:
    assert run(text, read_string)[0] is None


@pytest.mark.parametrize(
    ("text", "emitted", "rest"),
    [
        ('{"a": 1', '{"a": 1', ""),
        ('{"a": 1</tool_call>', '{"a": 1', "</tool_call>"),
        ('["a', '["a', ""),
        ("", "", ""),
        ("<x>", "", "<x>"),
    ],
)
def test_a_broken_value_says_so(text: str, emitted: str, rest: str) -> None:
    assert value(text) == (emitted, False, rest)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "{", "[" * 100_000, "9" * 5000])
def test_what_no_client_could_decode_is_none(text: str) -> None:
    assert decode(text) is None
