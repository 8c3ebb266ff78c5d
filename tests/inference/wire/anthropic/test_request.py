"""Requests as clients send them: what a neuron is asked, that it takes it, and what is refused."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.wire.anthropic.answer import MessageShape
from inference.wire.anthropic.facts import Thoughts
from inference.wire.anthropic.request import (
    MAX_MESSAGES,
    MESSAGES,
    encode_count,
    parse_count_request,
    parse_messages,
)
from inference.wire.errors import InvalidRequest
from neuron_agent.errors import Unprocessable
from neuron_agent.wire.chat_request import parse_chat_request
from neuron_agent.wire.tokenize import parse_tokenize_request

MINIMAL: dict[str, Any] = {
    "model": "claude-x",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "hi"}],
}
UNASKED = {"chat_template_kwargs": {"enable_thinking": False}}
CACHED = {"cache_control": {"type": "ephemeral"}}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {"command": {"type": "string", "description": "The command to run"}},
    "required": ["command"],
    "additionalProperties": False,
}
TEXT = {"type": "text", "text": ""}
TOOL = {"name": "Bash", "description": "Runs a command.\n", "input_schema": SCHEMA}

AGENTS_TURN: dict[str, Any] = {
    "model": "claude-x",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nToday is Monday.\n</system-reminder>"},
                {"type": "text", "text": "What is in this folder?", **CACHED},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I should look.", "signature": "EqQBCg=="},
                {"type": "redacted_thinking", "data": "EmwKAhg="},
                {"type": "text", "text": "I'll look."},
                {
                    "type": "tool_use",
                    "id": "toolu_01A",
                    "name": "Bash",
                    "input": {"command": "ls"},
                    "caller": {"type": "direct"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_01A",
                    "content": "a.txt\nb.txt",
                    "is_error": False,
                },
                {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>", **CACHED},
            ],
        },
        {"role": "system", "content": [{"type": "text", "text": "The user has gone to lunch."}]},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=0b1c2;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
        {"type": "text", "text": "\nUse the tools.", **CACHED},
    ],
    "tools": [
        {**TOOL, "defer_loading": True, "eager_input_streaming": True},
        {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
    ],
    "metadata": {"user_id": "user_0123_account__session_4567"},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive", "display": "summarized"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
    "speed": "fast",
}


def asked(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a neuron is asked, after the neuron's own reader took it."""
    request = parse_messages(json.dumps(fields).encode())
    assert parse_chat_request(request.body).is_streaming
    assert request.model == fields["model"]
    decoded = json.loads(request.body)
    assert isinstance(decoded, dict)
    return decoded


def refusal(fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        parse_messages(json.dumps(fields).encode())
    return raised.value


def test_a_plain_question_asks_for_nothing_else() -> None:
    assert asked(MINIMAL) == {**MINIMAL, **UNASKED, "stream": True}


def test_an_agents_turn_is_translated_whole() -> None:
    fields = asked(AGENTS_TURN)
    assert fields.pop("messages") == [
        {"role": "system", "content": "You are an agent.\n\nUse the tools."},
        {
            "role": "user",
            "content": "<system-reminder>\nToday is Monday.\n</system-reminder>\n"
            "What is in this folder?",
        },
        {
            "role": "assistant",
            "content": "I'll look.",
            "reasoning_content": "I should look.",
            "tool_calls": [
                {
                    "id": "call_01A",
                    "type": "function",
                    "function": {"name": "Bash", "arguments": '{"command": "ls"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_01A", "content": "a.txt\nb.txt"},
        {"role": "user", "content": "<system-reminder>Be brief.</system-reminder>"},
        {"role": "system", "content": "The user has gone to lunch."},
    ]
    function = {"name": "Bash", "description": "Runs a command.\n", "parameters": SCHEMA}
    assert fields == {
        "model": "claude-x",
        "tools": [{"type": "function", "function": function}],
        "max_tokens": 32000,
        "stream": True,
        "chat_template_kwargs": {"enable_thinking": True},
        "reasoning_effort": "high",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop_sequences": ["a", "b", "a", "\nX"]}, {"stop": ["a", "b", "\nX"]}),
        ({"stop_sequences": []}, {}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": 1, "top_p": 0.5, "top_k": 0}, ...),
        ({"top_k": 2**40}, {"top_k": 2**31 - 1}),
        ({"max_tokens": 10**12}, {"max_tokens": 2**31 - 1}),
        ({"max_tokens": 0}, {"max_tokens": 1}),
        ({"thinking": None, "tools": None, "tool_choice": None, "system": None}, {}),
        ({"stop_sequences": None, "temperature": None, "top_p": None, "top_k": None}, {}),
        ({"output_config": None, "stream": None, "metadata": None}, {}),
        ({"output_config": {"effort": None, "format": None, "new": 1}}, {}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        ({"thinking": {"type": "adaptive"}}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"thinking": {"type": "disabled"}}, {}),
        ({"betas": ["new-2026-11-01"], "service_tier": "auto", "container": None}, {}),
        ({"tools": []}, {}),
    ],
)
def test_a_field_becomes_the_neurons(fields: dict[str, Any], expected: Any) -> None:
    changed = fields if expected is ... else expected
    assert asked({**MINIMAL, **fields}) == {**MINIMAL, **UNASKED, **changed, "stream": True}


def test_thinking_between_tools_is_left_to_the_model() -> None:
    assert "chat_template_kwargs" not in asked({**MINIMAL, "thinking": {"type": "between_tools"}})


@pytest.mark.parametrize("kind", ["auto", "any"])
def test_calls_come_one_at_a_time_if_that_is_asked_for(kind: str) -> None:
    choice = {"type": kind, "disable_parallel_tool_use": True}
    assert (
        asked({**MINIMAL, "tools": [TOOL], "tool_choice": choice})["parallel_tool_calls"] is False
    )
    choice = {"type": kind, "disable_parallel_tool_use": False}
    assert "parallel_tool_calls" not in asked({**MINIMAL, "tools": [TOOL], "tool_choice": choice})


@pytest.mark.parametrize("place", [{"output_config": {"format": ...}}, {"output_format": ...}])
def test_a_schema_is_to_be_kept_to(place: dict[str, Any]) -> None:
    given_format = {"type": "json_schema", "schema": SCHEMA}
    filled = json.loads(json.dumps(place, default=lambda _: given_format))
    expected = {"name": "answer", "strict": True, "schema": SCHEMA}
    assert asked({**MINIMAL, **filled})["response_format"] == {
        "type": "json_schema",
        "json_schema": expected,
    }


def test_a_schema_goes_with_tools_that_cannot_be_chosen() -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    for choice in ({"type": "none"}, {"type": "any"}, {"type": "tool", "name": "Bash"}):
        fields = {**MINIMAL, "tools": [TOOL], "tool_choice": choice, "output_config": form}
        assert "response_format" in asked(fields)


@pytest.mark.parametrize(
    ("thinking", "thoughts"),
    [
        (None, Thoughts.UNASKED),
        ({"type": "disabled"}, Thoughts.UNASKED),
        ({"type": "enabled", "budget_tokens": 1024}, Thoughts.SHOWN),
        ({"type": "between_tools"}, Thoughts.SHOWN),
        ({"type": "adaptive", "display": "summarized"}, Thoughts.SHOWN),
        ({"type": "adaptive", "display": None}, Thoughts.SHOWN),
        ({"type": "adaptive", "display": "omitted"}, Thoughts.OMITTED),
    ],
)
def test_thinking_is_shown_if_it_was_asked_for(thinking: Any, thoughts: Thoughts) -> None:
    body = json.dumps({**MINIMAL, "thinking": thinking}).encode()
    assert parse_messages(body).shape == MessageShape("claude-x", thoughts)


@pytest.mark.parametrize(("given_edits", "expected"), [({"edits": []}, True), (None, False)])
def test_the_answer_knows_of_edits_that_were_asked_for(given_edits: Any, expected: bool) -> None:
    body = json.dumps({**MINIMAL, "context_management": given_edits}).encode()
    shape = parse_messages(body).shape
    assert isinstance(shape, MessageShape)
    assert shape.has_edits is expected


@pytest.mark.parametrize(("max_tokens", "is_silent"), [(0, True), (1, False)])
def test_who_wants_no_tokens_is_told_nothing(max_tokens: int, is_silent: bool) -> None:
    shape = parse_messages(json.dumps({**MINIMAL, "max_tokens": max_tokens}).encode()).shape
    assert isinstance(shape, MessageShape)
    assert shape.is_silent is is_silent


@pytest.mark.parametrize(
    "thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}]
)
def test_a_thread_is_refused_so_that_the_sdks_go_on_without_one(thread: dict[str, str]) -> None:
    error = refusal({**MINIMAL, "thread": thread})
    assert (error.param, error.extra) == ("thread", {"error_code": "thread_unsupported_request"})
    assert asked({**MINIMAL, "thread": None}) == asked(MINIMAL)


def test_a_conversation_is_not_compacted_and_can_be_counted() -> None:
    fields = {**MINIMAL, "compaction": {"type": "summarize"}}
    assert refusal(fields).param == "compaction"
    assert parse_count_request(json.dumps(fields).encode()).model == "claude-x"


def test_an_answer_that_was_begun_is_refused_as_newer_models_refuse_it() -> None:
    begun = {**MINIMAL, "messages": [*MINIMAL["messages"], {"role": "assistant", "content": "{"}]}
    error = refusal(begun)
    assert error.param == "messages"
    assert error.message == (
        "This model does not support assistant message prefill. "
        "The conversation must end with a user message."
    )
    assert parse_count_request(json.dumps(begun).encode()).model == "claude-x"


def test_messages_and_their_blocks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_MESSAGES == 100_000  # as Anthropic has it
    monkeypatch.setattr("inference.wire.anthropic.request.MAX_MESSAGES", 4)
    message, two = MINIMAL["messages"][0], {"role": "user", "content": [TEXT, TEXT]}
    for messages in ([message] * 4, [two, two], [two, message, message]):
        assert asked({**MINIMAL, "messages": messages})
    for messages in ([message] * 5, [two, two, message]):
        error = refusal({**MINIMAL, "messages": messages})
        assert error.message == "messages: at most 4 messages and blocks can be sent"


@pytest.mark.parametrize(("stream", "expected"), [(True, True), (False, False), (None, False)])
def test_the_client_says_whether_it_wants_a_stream(stream: bool | None, expected: bool) -> None:
    assert parse_messages(json.dumps({**MINIMAL, "stream": stream}).encode()).stream is expected


def one(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [None]}, "messages.0"),
        (one("x", "tool"), "messages.0.role"),
        (one(None), "messages.0.content"),
        (one(["x"]), "messages.0.content.0"),
        (one([{"type": "txt", "text": "x"}]), "messages.0.content.0.type"),
        (one([{"text": "x"}]), "messages.0.content.0.type"),
        (one([{"type": "text"}]), "messages.0.content.0.text"),
        (one([{"type": "text", "text": None}]), "messages.0.content.0.text"),
        (
            one([{"type": "tool_use", "id": "x", "name": "f", "input": {}}]),
            "messages.0.content.0.type",
        ),
        (one([{"type": "tool_result"}]), "messages.0.content.0.tool_use_id"),
        (
            one([{"type": "tool_result", "tool_use_id": "x", "content": [TEXT] * 10_001}]),
            "messages.0.content.0.content",
        ),
        (one([{"type": "image", "source": {"type": "x"}}]), "messages.0.content.0.source.type"),
        (
            one([{"type": "tool_result", "tool_use_id": "x"}], "assistant"),
            "messages.0.content.0.type",
        ),
        (
            one([{"type": "tool_use", "id": "x", "name": "f"}], "assistant"),
            "messages.0.content.0.input",
        ),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"temperature": 1.01}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"stream": "yes"}, "stream"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": [" \n"]}, "stop_sequences.0"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences.1"),
        ({"stop_sequences": ["x" * 513]}, "stop_sequences.0"),
        ({"stop_sequences": [f"s{n}" for n in range(33)]}, "stop_sequences"),
        ({"thinking": {"type": "on"}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "display": "x"}}, "thinking.display"),
        ({"thinking": "enabled"}, "thinking"),
        ({"tools": {}}, "tools"),
        ({"tools": ["x"]}, "tools.0"),
        ({"tools": [{}] * 10_001}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": []}}},
            "output_config.format.schema",
        ),
    ],
)
def test_what_makes_no_sense_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal({**MINIMAL, **fields})
    assert error.param == param
    assert error.message.startswith(f"{param}: ")


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    error = refusal({name: value for name, value in MINIMAL.items() if name != missing})
    assert (error.message, error.param) == (f"{missing}: Field required", missing)


@pytest.mark.parametrize(
    "fields",
    [
        MINIMAL,
        AGENTS_TURN,
        {**AGENTS_TURN, "tool_choice": {"type": "none"}},
        {**AGENTS_TURN, "tool_choice": {"type": "tool", "name": "Bash"}},
        {**MINIMAL, "thinking": {"type": "disabled"}},
    ],
)
def test_counted_is_what_would_be_read(fields: dict[str, Any]) -> None:
    request = parse_messages(json.dumps(fields).encode())
    unlimited = {name: value for name, value in fields.items() if name != "max_tokens"}
    count = parse_count_request(json.dumps(unlimited).encode())
    assert count.model == request.model
    rendered = parse_tokenize_request(count.body).conversation
    assert rendered == parse_chat_request(request.body).conversation


def test_what_cannot_be_asked_cannot_be_counted() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_count_request(b'{"model":"m","messages":[]}')
    assert raised.value.param == "messages"


def test_a_count_is_one_number() -> None:
    assert json.loads(encode_count(1234)) == {"input_tokens": 1234}


def test_messages_are_asked_of_a_neuron_as_a_chat() -> None:
    assert (MESSAGES.path, MESSAGES.neuron_path) == ("/v1/messages", "/v1/chat/completions")


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


PLACES = places(AGENTS_TURN)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(-9, 9)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "content", "name"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.sampled_from(PLACES), values)
def test_a_body_with_anything_in_it_is_refused_or_taken_by_a_neuron(
    place: tuple[str | int, ...], value: Any
) -> None:
    body = json.loads(json.dumps({"": AGENTS_TURN}))
    *way, last = ("", *place)
    target = body
    for step in way:
        target = target[step]
    target[last] = value
    with contextlib.suppress(InvalidRequest):
        request = parse_messages(json.dumps(body[""]).encode())
        with contextlib.suppress(Unprocessable):  # an image, to what takes text alone
            parse_chat_request(request.body)
