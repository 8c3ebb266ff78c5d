"""Items as messages: each accepted shape, and the turns they make up."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.errors import InvalidRequest
from inference.wire.responses import carried
from inference.wire.responses.request import parse_response_request

USER = {"role": "user", "content": "hi"}


def messages_of(given: object, **fields: Any) -> list[dict[str, Any]]:
    body = json.dumps({"model": "m", "input": given, **fields}).encode()
    found: list[dict[str, Any]] = json.loads(parse_response_request(body).body)["messages"]
    return found


def call(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def chat_call(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def output(call_id: str, said: object = "ok") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": said}


def result(call_id: str, said: object = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": said}


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}


def thought(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}], **fields}


def test_a_text_is_a_users_message() -> None:
    assert messages_of("hi") == [USER]
    assert messages_of("hi", instructions="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        USER,
    ]


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer"])
@pytest.mark.parametrize("type_", [{}, {"type": None}, {"type": "message"}])
def test_messages_have_any_role_with_or_without_a_type(role: str, type_: dict[str, Any]) -> None:
    item = {**type_, "role": role, "content": "hi", "id": "msg_1", "status": "completed"}
    assert messages_of([item]) == [{"role": role, "content": "hi"}]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], ""),
        ([{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}], "ab"),
        ([{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}], "ab"),
        ([{"type": "text", "text": "a"}], "a"),
        (
            [
                {"type": "input_text", "text": "a"},
                {"type": "input_image", "image_url": "data:x", "detail": "low"},
            ],
            [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}},
            ],
        ),
        (
            [{"type": "input_file", "filename": "a.pdf", "file_data": "data:x"}],
            [{"type": "file", "file": {"file_data": "data:x", "filename": "a.pdf"}}],
        ),
    ],
)
def test_parts_are_a_chats(parts: object, expected: object) -> None:
    assert messages_of([{"role": "user", "content": parts}])[0]["content"] == expected
    assert messages_of([call("1"), output("1", parts)])[1]["content"] == expected


def test_calls_in_a_row_are_one_message() -> None:
    assert messages_of([USER, call("1"), call("2", "g"), output("1"), output("2")]) == [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [chat_call("1"), chat_call("2", "g")]},
        result("1"),
        result("2"),
    ]


def test_a_call_belongs_to_what_was_said_before_it() -> None:
    assert messages_of([said("I look."), call("1"), output("1"), said("Done.")]) == [
        {"role": "assistant", "content": "I look.", "tool_calls": [chat_call("1")]},
        result("1"),
        {"role": "assistant", "content": "Done."},
    ]


def test_what_is_said_before_the_results_belongs_to_the_calls() -> None:
    turn, tool = messages_of([said("a"), call("1"), said("b"), output("1")])
    assert (turn["content"], turn["tool_calls"]) == ("ab", [chat_call("1")])
    assert tool == result("1")


def test_two_answers_in_a_row_stay_two() -> None:
    assert [message["content"] for message in messages_of([said("a"), said("b")])] == ["a", "b"]


def test_calls_after_results_are_a_new_turn() -> None:
    roles = [
        message["role"] for message in messages_of([call("1"), output("1"), call("2"), output("2")])
    ]
    assert roles == ["assistant", "tool", "assistant", "tool"]


@pytest.mark.parametrize(
    "reasoning",
    [
        thought("hm"),
        {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "hm"}]},
        thought("short", content=[{"type": "reasoning_text", "text": "hm"}]),
        {"type": "reasoning", "summary": [], "encrypted_content": carried.pack("hm")},
        thought("hm", encrypted_content="gAAAA-of-another-service"),
    ],
)
@pytest.mark.parametrize("following", [said("a"), call("1")])
def test_thoughts_belong_to_the_turn_that_follows(
    reasoning: dict[str, Any], following: dict[str, Any]
) -> None:
    (turn,) = messages_of([reasoning, following])
    assert turn["reasoning_content"] == "hm"


def test_thoughts_of_another_service_are_dropped() -> None:
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA", "content": None}
    assert messages_of([USER, foreign, said("a")]) == [USER, {"role": "assistant", "content": "a"}]


def test_thoughts_that_were_broken_off_are_dropped() -> None:
    assert messages_of([thought("hm"), USER, said("a")]) == [
        USER,
        {"role": "assistant", "content": "a"},
    ]


def test_thoughts_in_a_row_are_one() -> None:
    (turn,) = messages_of([thought("a"), thought("b"), said("c")])
    assert turn["reasoning_content"] == "a\n\nb"


def test_thoughts_between_calls_begin_a_new_turn() -> None:
    turns = messages_of([thought("a"), call("1"), thought("b"), call("2")])
    assert [turn["reasoning_content"] for turn in turns] == ["a", "b"]


def test_a_call_in_a_namespace_has_the_name_it_was_offered_under() -> None:
    (turn,) = messages_of([{**call("1"), "namespace": "ns"}, {**call("2"), "namespace": None}])
    assert turn["tool_calls"] == [chat_call("1", "ns__f"), chat_call("2")]


def test_custom_and_shell_calls_stay_in_the_conversation() -> None:
    custom = {"type": "custom_tool_call", "call_id": "1", "name": "patch", "input": 'a "b"'}
    shell = {"type": "local_shell_call", "call_id": "2", "action": {"command": ["ls"]}}
    done = {"type": "custom_tool_call_output", "call_id": "1", "output": "ok"}
    turn, first, second = messages_of([custom, shell, done, output("2")])
    assert turn["tool_calls"][0] == chat_call("1", "patch", '{"input":"a \\"b\\""}')
    assert turn["tool_calls"][1]["function"]["name"] == "local_shell"
    assert json.loads(turn["tool_calls"][1]["function"]["arguments"]) == {"command": ["ls"]}
    assert (first, second) == (result("1"), result("2"))


@pytest.mark.parametrize(
    "item",
    [
        {"type": "web_search_call", "action": {"type": "search", "query": "x"}},
        {"type": "ghost_snapshot", "ghost_commit": {}},
        {"type": "something new", "content": 3, "role": "user"},
    ],
)
def test_items_of_other_types_are_ignored(item: dict[str, Any]) -> None:
    assert messages_of([item, USER]) == [USER]
    with pytest.raises(InvalidRequest) as raised:
        messages_of([item])
    assert raised.value.param == "input"


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_1"},
        {"type": "compaction", "encrypted_content": "gAAAA"},
    ],
)
def test_what_is_stored_elsewhere_is_refused(item: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as raised:
        messages_of([USER, item])
    assert raised.value.param == "input[1]"


@pytest.mark.parametrize(
    ("item", "param"),
    [
        (3, "input[1]"),
        ("hi", "input[1]"),
        ({"type": 3}, "input[1].type"),
        ({"role": "user"}, "input[1].content"),
        ({"role": 3, "content": "x"}, "input[1].role"),
        ({"role": "owner", "content": "x"}, "input[1].role"),
        ({"role": "tool", "content": "x"}, "input[1].role"),
        ({"role": "user", "content": None}, "input[1].content"),
        ({"role": "user", "content": [3]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"text": "x"}]}, "input[1].content[0].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0].text"),
        ({"role": "user", "content": [{"type": "input_image"}]}, "input[1].content[0].image_url"),
        ({"role": "user", "content": [{"type": "refusal"}]}, "input[1].content[0].refusal"),
        ({"role": "user", "content": [{"type": "smell"}]}, "input[1].content[0].type"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "input[1].call_id"),
        ({"type": "function_call", "call_id": "1", "arguments": "{}"}, "input[1].name"),
        ({**call("1"), "arguments": {}}, "input[1].arguments"),
        ({"type": "function_call_output", "call_id": "1"}, "input[1].output"),
        (output("1", [{"type": "smell"}]), "input[1].output[0].type"),
        ({"type": "reasoning", "summary": "x"}, "input[1].summary"),
        ({"type": "reasoning", "summary": [{}]}, "input[1].summary[0].text"),
    ],
)
def test_a_wrong_item_is_named(item: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        messages_of([USER, item])
    assert raised.value.param == param


words = st.text(min_size=1, max_size=5)
items = st.lists(
    st.one_of(
        st.builds(lambda text: {"role": "user", "content": text}, words),
        st.builds(said, words),
        st.builds(call, words, words, words),
        st.builds(output, words, words),
        st.builds(thought, words),
    ),
    min_size=1,
    max_size=12,
)


@given(items)
def test_nothing_that_was_said_is_lost_or_moved(given: list[dict[str, Any]]) -> None:
    """Texts, calls and results come out in the order they went in, each in its own kind."""
    given = [*given, USER]
    went_in = [_spoken(item) for item in given if item.get("type") != "reasoning"]
    came_out = [told for message in messages_of(given) for told in _told(message)]
    assert _merged(came_out) == _merged(went_in)


def _spoken(item: dict[str, Any]) -> tuple[str, ...]:
    match item:
        case {"type": "function_call", "call_id": call_id}:
            return "call", call_id
        case {"type": "function_call_output", "output": text}:
            return "tool", text
        case {"content": [{"text": text}]}:
            return "assistant", text
        case _:
            return item["role"], item["content"]


def _told(message: dict[str, Any]) -> list[tuple[str, ...]]:
    calls = [("call", call["id"]) for call in message.get("tool_calls", ())]
    texts = [(message["role"], message["content"])]
    return calls if calls and not message["content"] else [*texts, *calls]


def _merged(told: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What one turn says and calls is one thing each: a chat has no order among them."""
    found: list[tuple[str, ...]] = []
    turn: dict[str, tuple[str, ...]] = {}
    for kind, *rest in told:
        if kind in ("assistant", "call"):
            turn[kind] = (*turn.get(kind, (kind,)), *rest)
            continue
        found += [turn[name] for name in sorted(turn)] + [(kind, *rest)]
        turn = {}
    joined = [*found, *(turn[name] for name in sorted(turn))]
    return [
        (kind, "".join(rest)) if kind == "assistant" else (kind, *rest) for kind, *rest in joined
    ]
