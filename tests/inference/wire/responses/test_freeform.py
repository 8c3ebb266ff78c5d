"""A text that travelled as one argument is the same text, however its JSON was cut and written."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.responses.freeform import (
    PARAMETERS,
    CustomTool,
    Format,
    TextReader,
    as_arguments,
)


def read(*pieces: str) -> str:
    reader = TextReader()
    told = "".join(map(reader.feed, pieces)) + reader.finish()
    assert reader.finish() == ""
    return told


@given(st.text(), st.booleans(), st.integers(0, 3), st.data())
def test_what_is_read_is_what_was_said_wherever_it_was_cut(
    text: str, is_ascii: bool, indent: int, data: st.DataObject
) -> None:
    written = json.dumps({"input": text}, ensure_ascii=is_ascii, indent=indent or None)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=6)))
    edges = [0, *cuts, len(written)]
    assert read(*(written[a:b] for a, b in itertools.pairwise(edges))) == text
    assert read(as_arguments(text)) == text


def test_a_text_is_told_as_it_grows() -> None:
    reader = TextReader()
    pieces = ['{"inp', 'ut": "*** Beg', "in", "\\n\\u00", 'e9"', "}"]
    assert [reader.feed(piece) for piece in pieces] == ["", "*** Beg", "in", "\n", "é", ""]
    assert reader.finish() == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"patch": "x\\n"}', "x\n"),
        ('{"a": "x", "input": "y"}', '{"a": "x", "input": "y"}'),
        ('{"input": ["x"]}', '{"input": ["x"]}'),
        ("*** Begin Patch", "*** Begin Patch"),
        ("{}", ""),
        ("", ""),
        ("[" * 5000, "[" * 5000),
        ('{"input": "a\nb"}', "a\nb"),
        ('{"input": "cut off', "cut off"),
        ('{"input": "cut off\\', "cut off"),
        ('{"input": "cut off\\ud83d\\ud', "cut off"),
        ('{"input": "a\\d+ and the rest"}', "a\\d+ and the rest"),
        ('{"input": "x", "more": "y"}', "x"),
    ],
)
def test_of_arguments_that_are_not_as_asked_nothing_is_lost(arguments: str, text: str) -> None:
    assert read(arguments) == text
    assert read(*arguments) == text


def test_a_model_is_told_of_a_grammar() -> None:
    tool = CustomTool("f", "Edits.", Format("grammar", "lark", "start: /x/"))
    told = tool.shown_description
    assert told == "Edits.\n\n`input` follows this grammar (lark):\n\nstart: /x/"
    assert CustomTool("f", "Edits.", Format("text")).shown_description == "Edits."
    assert CustomTool("f").shown_description == ""
    assert PARAMETERS["required"] == ["input"]
