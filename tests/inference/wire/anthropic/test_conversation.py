"""Conversations: every shape of content that clients send, and that no text is lost or moved."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire.anthropic.blocks import Message, SystemContent
from inference.wire.anthropic.conversation import translated
from inference.wire.errors import InvalidRequest

PNG = "iVBORw0KGgo="
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
IMAGE_PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, **CACHED}


def translate(*messages: dict[str, Any], system: Any = None) -> list[dict[str, Any]]:
    return translated(
        msgspec.json.decode(json.dumps(system).encode(), type=SystemContent | None),
        msgspec.json.decode(json.dumps(messages).encode(), type=list[Message]),
    )


def user(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    return translate({"role": "user", "content": blocks})


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    [message] = translate({"role": "assistant", "content": blocks})
    return message


def tool_result(content: Any = None, **fields: Any) -> dict[str, Any]:
    shown = {} if content is None else {"content": content}
    return {"type": "tool_result", "tool_use_id": "toolu_1", **shown, **fields, **CACHED}


def test_strings_pass_as_they_are() -> None:
    messages = [
        {"role": "user", "content": " hi\u0000 "},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": ""},
    ]
    assert translate(*messages, system="be good") == [
        {"role": "system", "content": "be good"},
        *messages,
    ]


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (None, []),
        ("", []),
        ([], []),
        ([text("")], []),
        ([text("a"), text(""), text("b")], ["a\nb"]),
    ],
)
def test_a_system_prompt_is_one_message_if_it_says_anything(
    system: Any, expected: list[str]
) -> None:
    [*found, _] = translate({"role": "user", "content": "x"}, system=system)
    assert found == [{"role": "system", "content": content} for content in expected]


def test_an_accounts_line_does_not_stand_before_the_prompt() -> None:
    line = "x-anthropic-billing-header: cc_version=2.1.77.e19; cc_entrypoint=cli; cch=00000;"
    for blocks in ([text(line), text("be good")], [text(f"{line}\nbe good")]):
        [system, _] = translate({"role": "user", "content": "x"}, system=blocks)
        assert system["content"] == "be good"
    assert len(translate({"role": "user", "content": line}, system=[text(line)])) == 1


def test_a_system_message_stays_where_it_is() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "system", "content": "b"},
        {"role": "system", "content": [text("c"), {"type": "tool_addition", "tools": []}]},
        {"role": "user", "content": "d"},
    ]
    assert [(m["role"], m["content"]) for m in translate(*messages)] == [
        ("user", "a"),
        ("system", "b"),
        ("system", "c"),
        ("user", "d"),
    ]


def test_messages_of_one_role_in_a_row_stay_apart() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert translate(*messages) == messages


def test_tool_results_become_messages_and_the_text_after_them_one_more() -> None:
    second = tool_result("two", tool_use_id="toolu_2")
    assert user(tool_result("one"), second, text("a"), text("b")) == [
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        {"role": "user", "content": "a\nb"},
    ]


def test_text_before_a_tool_result_stays_before_it() -> None:
    assert [message["role"] for message in user(text("a"), tool_result("x"), text("b"))] == [
        "user",
        "tool",
        "user",
    ]


@pytest.mark.parametrize(
    ("result", "content"),
    [
        (tool_result(), ""),
        (tool_result(""), ""),
        (tool_result([]), ""),
        (tool_result("x"), "x"),
        (tool_result([text("x"), text("y")]), "x\ny"),
        (tool_result([IMAGE]), [IMAGE_PART]),
        (tool_result([text("x"), IMAGE]), [{"type": "text", "text": "x"}, IMAGE_PART]),
        (
            tool_result([{"type": "tool_reference", "tool_name": "grep"}]),
            "The tool grep is available.",
        ),
        (tool_result("no such file", is_error=True), "Error:\nno such file"),
        (tool_result("Error: no such file", is_error=True), "Error: no such file"),
        (tool_result("<tool_use_error>no</tool_use_error>", is_error=True), ...),
        (tool_result(is_error=True), "Error:"),
        (tool_result("x", is_error=False), "x"),
        (tool_result("x", is_error=None), "x"),
    ],
)
def test_a_tool_result_may_be_anything(result: dict[str, Any], content: Any) -> None:
    expected = result["content"] if content is ... else content
    assert user(result) == [{"role": "tool", "tool_call_id": "call_1", "content": expected}]


@pytest.mark.parametrize(
    ("source", "content"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "words"}, "words"),
        ({"type": "content", "content": "words"}, "words"),
        ({"type": "content", "content": [text("two"), text("words")]}, "two\nwords"),
    ],
)
def test_a_documents_text_is_shown_with_its_title(source: dict[str, Any], content: str) -> None:
    document = {"type": "document", "source": source, **CACHED}
    assert user(document) == [{"role": "user", "content": content}]
    named = {**document, "title": "T", "context": "C", "citations": {"enabled": True}}
    assert user(named, text("?")) == [{"role": "user", "content": f"T\nC\n{content}\n?"}]
    [result] = user(tool_result([named]))
    assert result["content"] == f"T\nC\n{content}"


def test_a_document_that_is_no_text_is_a_models_to_refuse() -> None:
    source = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
    [message] = user({"type": "document", "source": source})
    file = {"file_data": "data:application/pdf;base64,JVBERi0="}
    assert message["content"] == [{"type": "file", "file": file}]


def test_a_search_result_is_shown_with_its_source() -> None:
    found = {"type": "search_result", "source": "http://x", "title": "T", "content": [text("w")]}
    assert user(found) == [{"role": "user", "content": "T (http://x)\nw"}]


def test_an_image_by_url_passes() -> None:
    [message] = user({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}})
    assert message["content"] == [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]


def test_an_assistants_turn_keeps_thoughts_text_and_calls() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1, "ö"]}, **CACHED}
    message = assistant(
        {"type": "thinking", "thinking": "hm, ", "signature": "Zm9v"},
        {"type": "redacted_thinking", "data": "abc"},
        {"type": "thinking", "thinking": "yes", "signature": ""},
        text("Let me "),
        text("see."),
        use,
        {**use, "id": "srv_2", "input": {}},
    )
    first, second = message.pop("tool_calls")
    assert message == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "hm, yes",
    }
    assert (first["id"], first["type"], first["function"]["name"]) == ("call_1", "function", "f")
    assert json.loads(first["function"]["arguments"]) == use["input"]
    assert (second["id"], second["function"]["arguments"]) == ("srv_2", "{}")


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [{"type": "redacted_thinking", "data": "abc"}],
        [{"type": "thinking", "thinking": "", "signature": "abc"}],
        [{"type": "thinking", "thinking": ""}],
        [{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}],
        [{"type": "web_search_tool_result", "tool_use_id": "x", "content": {"error_code": "y"}}],
        [{"type": "compaction", "content": None}],
    ],
)
def test_a_turn_of_which_nothing_is_left_is_an_empty_one(blocks: list[dict[str, Any]]) -> None:
    assert assistant(*blocks) == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("blocks", [[], [text("")], [{"type": "container_upload", "file_id": "x"}]])
def test_a_user_who_says_nothing_has_a_turn_all_the_same(blocks: list[dict[str, Any]]) -> None:
    assert user(*blocks) == [{"role": "user", "content": ""}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (
            {
                "role": "user",
                "content": [{"type": "image", "source": {"type": "file", "file_id": "x"}}],
            },
            "messages.0.content.0.source",
        ),
        (
            {
                "role": "user",
                "content": [
                    tool_result(
                        [
                            text("x"),
                            {"type": "document", "source": {"type": "url", "url": "http://x"}},
                        ]
                    )
                ],
            },
            "messages.0.content.0.content.1.source",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "document", "source": {"type": "file", "file_id": "x"}}],
            },
            "messages.0.content.0.source",
        ),
        (
            {
                "role": "assistant",
                "content": [
                    text("x"),
                    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": "x"},
                ],
            },
            "messages.0.content.1.input",
        ),
    ],
)
def test_what_cannot_be_had_is_named(message: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        translate(message)
    assert raised.value.param == param


words = st.integers(0, 10**6).map(lambda number: f"<{number}>")
text_blocks = words.map(text)
results = st.lists(text_blocks, max_size=3).map(tool_result) | words.map(tool_result)
user_turns = st.lists(text_blocks | results, max_size=5)
assistant_turns = st.lists(text_blocks, max_size=3)
turns = st.one_of(
    st.tuples(st.just("user"), user_turns | words),
    st.tuples(st.just("assistant"), assistant_turns | words),
    st.tuples(st.just("system"), assistant_turns | words),
)


def spoken(value: Any) -> str:
    """Return all text in a message or a block, in order."""
    match value:
        case str():
            return value
        case list():
            return "".join(map(spoken, value))
        case {"text": str(words)}:
            return words
        case {"content": content}:
            return spoken(content)
        case _:
            return ""


@given(st.lists(turns, max_size=6))
def test_no_text_is_lost_or_moved(conversation: list[tuple[str, Any]]) -> None:
    messages = [{"role": role, "content": content} for role, content in conversation]
    found = translate(*messages)
    assert spoken(found).replace("\n", "") == spoken(messages)
    roles = [message["role"] for message in found if message["role"] != "tool"]
    assert set(roles) <= {"user", "assistant", "system"}
    assert len(found) >= len(messages)
