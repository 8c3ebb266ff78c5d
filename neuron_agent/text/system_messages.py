"""The same conversation in forms that stricter templates take: where its instructions stand.

Some templates want one system message, at the start; some know none; many want user and assistant
in turns. No word is lost or made up here: texts that come together are parted by a blank line. It
knows no templates.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

Message = Mapping[str, Any]

SYSTEM_ROLES = frozenset({"system", "developer"})
SEPARATOR = "\n\n"


def forms_of(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Yield a conversation as it is, then what else it may be shown as, each form once.

    1. As it is.
    2. All instructions in one message, at the start; neighbours of one role in one message.
    3. The same with the instructions at the start of what the user says first.
    """
    yield messages
    hoisted = hoist_system(messages)
    if hoisted != list(messages):
        yield hoisted
    folded = fold_system(hoisted)
    if folded != hoisted:
        yield folded


def hoist_system(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation with all instructions, in their order, in its first message."""
    system = [message for message in messages if message["role"] in SYSTEM_ROLES]
    others = [message for message in messages if message["role"] not in SYSTEM_ROLES]
    return [*([_joined(system)] if system else []), *_in_turns(others)]


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation whose first message, if it instructs, begins the first user's."""
    others = list(messages[1:])
    users = [at for at, message in enumerate(others) if message["role"] == "user"]
    if not users or messages[0]["role"] not in SYSTEM_ROLES:
        return list(messages)
    others[users[0]] = {
        **others[users[0]],
        "content": _text([messages[0], others[users[0]]]),
    }
    return others


def shows_instructions(prompt: str, messages: Sequence[Message]) -> bool:
    """Whether the instructions behind the first message are in a prompt: templates may skip them.

    Not those of the first message: some templates take words out of it that are meant for them.
    """
    return all(
        str(message.get("content", "")).strip() in prompt
        for message in messages[1:]
        if message["role"] in SYSTEM_ROLES
    )


def _in_turns(messages: Iterable[Message]) -> Iterator[Message]:
    for key, group in groupby(messages, _kind):
        neighbours = list(group)
        if key is None:
            yield from neighbours
        else:
            yield _joined(neighbours)


def _kind(message: Message) -> str | None:
    """Return whose message it is if it is plain text, which can be joined to more of the same."""
    is_plain = message.keys() == {"role", "content"} and message["role"] in ("user", "assistant")
    return str(message["role"]) if is_plain else None


def _joined(messages: Sequence[Message]) -> Message:
    if len(messages) == 1:
        return messages[0]
    return {**messages[0], "content": _text(messages)}


def _text(messages: Iterable[Message]) -> str:
    return SEPARATOR.join(str(message.get("content", "")) for message in messages)
