"""GLM's markup: plain text between tags, typed by the tool's schema."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.output_format import OutputFormat, ToolFamily
from neuron_agent.text.pieces import CallArguments, CallStarted, Said
from tests.neuron_agent.text.outputs import calls_of, parse, said

GLM = OutputFormat(tools=ToolFamily.GLM)
WORDS = st.text(alphabet='aü"\\\n <{}', max_size=12)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": WORDS,
        "days": st.integers(),
        "is_dry": st.booleans(),
        "where": st.dictionaries(WORDS, st.integers(), max_size=2),
        "tags": st.lists(WORDS, max_size=2),
    },
)


def written(name: str, arguments: dict[str, Any], between: str) -> str:
    parts = [f"<tool_call>{name}"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        parts += [f"<arg_key>{key}</arg_key>", f"<arg_value>{text}</arg_value>"]
    return between.join([*parts, "</tool_call>"])


@given(st.lists(ARGUMENTS, min_size=1, max_size=3), st.sampled_from(["\n", ""]))
def test_calls_come_out_exactly(calls: list[dict[str, Any]], between: str) -> None:
    text = "\n".join(written("get_weather", arguments, between) for arguments in calls)
    pieces = parse(GLM, list(f"Well.\n{text}"))
    assert calls_of(pieces) == [("get_weather", arguments) for arguments in calls]
    assert said(pieces) == "Well."


def test_a_string_comes_as_it_is_written() -> None:
    begun = "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>San Fr"
    assert parse(GLM, [begun]) == [
        CallStarted(0, "get_weather"),
        CallArguments(0, '{"city": "San Fr'),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>ping",
        "<tool_call></tool_call>",
        "<tool_call>two words</tool_call>",
        '<tool_call>{"name": "ping"}</tool_call>',
    ],
)
def test_what_is_no_call_is_text_verbatim(text: str) -> None:
    assert parse(GLM, list(text)) == [Said(text)]
