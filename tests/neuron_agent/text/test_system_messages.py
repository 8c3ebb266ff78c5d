"""Laws of a conversation's forms: nothing is lost, and each is what it is there for."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.system_messages import (
    SYSTEM_ROLES,
    fold_system,
    forms_of,
    hoist_system,
    shows_instructions,
)

CALL = [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "call", "tool"])


def build(roles: list[str]) -> list[dict[str, Any]]:
    """Return messages whose texts are all different."""
    messages: list[dict[str, Any]] = []
    for number, role in enumerate(roles):
        text = f"<{number}>"
        if role == "call":
            messages.append({"role": "assistant", "content": text, "tool_calls": CALL})
        elif role == "tool":
            messages.append({"role": "tool", "content": text, "tool_call_id": "c"})
        else:
            messages.append({"role": role, "content": text})
    return messages


CONVERSATIONS = st.lists(ROLES, min_size=1, max_size=12).map(build)


def texts(messages: Any) -> list[str]:
    return [text for message in messages for text in message["content"].split("\n\n")]


def is_system(message: Any) -> bool:
    return message["role"] in SYSTEM_ROLES


@given(CONVERSATIONS)
def test_every_form_has_every_text_and_all_but_instructions_in_their_order(messages: Any) -> None:
    said = [message["content"] for message in messages if not is_system(message)]
    told = [message["content"] for message in messages if is_system(message)]
    for form in forms_of(messages):
        assert sorted(texts(form)) == sorted(texts(messages))
        assert [text for text in texts(form) if text in said] == said
        assert [text for text in texts(form) if text in told] == told


@given(CONVERSATIONS)
def test_the_first_form_is_the_conversation_and_no_form_comes_twice(messages: Any) -> None:
    first, *others = map(list, forms_of(messages))
    assert first == messages
    assert all(one != another for one, another in pairwise([first, *others]))
    assert len(others) <= 2


@given(CONVERSATIONS)
def test_hoisted_is_one_instruction_at_the_start_and_plain_turns(messages: Any) -> None:
    hoisted = hoist_system(messages)
    assert not any(map(is_system, hoisted[1:]))
    assert is_system(hoisted[0]) == any(map(is_system, messages))
    for one, other in pairwise(hoisted):
        is_same = one["role"] == other["role"] and one.keys() == other.keys()
        assert not is_same or one["role"] == "tool" or "tool_calls" in one
    calls = [message for message in hoisted if len(message) > 2]
    assert calls == [message for message in messages if len(message) > 2], "calls stay apart"
    assert hoist_system(hoisted) == hoisted


@given(CONVERSATIONS)
def test_folded_has_no_instructions_where_there_is_a_user(messages: Any) -> None:
    folded = fold_system(hoist_system(messages))
    if any(message["role"] == "user" for message in messages):
        assert not any(map(is_system, folded))
    else:
        assert folded == hoist_system(messages)


def test_only_later_instructions_must_be_shown() -> None:
    messages = build(["system", "user", "system"])
    assert shows_instructions("<2>", messages)
    assert not shows_instructions("<0><1>", messages)
