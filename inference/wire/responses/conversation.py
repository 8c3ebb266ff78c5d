"""Input items as the messages of a chat: nothing added, nothing reordered.

Responses know no assistant's turn, only items in a row; a chat has one message for what was
thought, said and called at once. It knows neither which tools are offered nor how the answer is to
look.
"""

from collections.abc import Iterable, Sequence
from typing import Any, assert_never

import msgspec

from inference.wire.errors import InvalidRequest
from inference.wire.responses import carried
from inference.wire.responses.freeform import as_arguments
from inference.wire.responses.input_items import (
    CallOutputItem,
    Content,
    CustomToolCallItem,
    FunctionCallItem,
    LocalShellCallItem,
    MessageItem,
    Part,
    ReasoningItem,
    read_item,
)
from inference.wire.responses.tools import name_for_model

ChatMessage = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_TYPES = frozenset({"input_text", "output_text", "text", "summary_text", "reasoning_text"})


def chat_messages(
    instructions: str | None, given: str | Sequence[msgspec.Raw]
) -> list[ChatMessage]:
    """Raises InvalidRequest."""
    translation = _Translation()
    if instructions is not None:
        translation.messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        translation.messages.append({"role": "user", "content": given})
    else:
        for index, raw in enumerate(given):
            translation.take(raw, f"input[{index}]")
    if not translation.messages:
        raise InvalidRequest("`input` has nothing that a model could read.", param="input")
    return translation.messages


class _Translation:
    """State is the assistant's message that items may still belong to, and what it thought first.

    Thoughts that nothing said or called follows were broken off, and are dropped.
    """

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._turn: ChatMessage | None = None
        self._thoughts: list[str] = []

    def take(self, raw: msgspec.Raw, place: str) -> None:
        match read_item(raw, place):
            case MessageItem("assistant", content):
                self._say(_content(content, f"{place}.content"))
            case MessageItem(role, content):
                self._add_message(role, _content(content, f"{place}.content"), place)
            case FunctionCallItem(call_id, name, arguments, namespace):
                self._call(call_id, name_for_model(namespace, name), arguments)
            case CustomToolCallItem(call_id, name, text, namespace):
                self._call(call_id, name_for_model(namespace, name), as_arguments(text))
            case LocalShellCallItem(call_id, action):
                self._call(call_id, "local_shell", bytes(action).decode())
            case CallOutputItem(call_id, output):
                shown = _content(output, f"{place}.output")
                self._add({"role": "tool", "tool_call_id": call_id, "content": shown})
            case ReasoningItem() as item:
                self._turn = None
                self._thoughts.append(_thought(item))
            case None:
                pass
            case never:
                assert_never(never)

    def _say(self, content: str | list[ChatMessage]) -> None:
        """What is said after a call whose result is not there yet is of the same turn."""
        turn = self._turn
        if turn is None or "tool_calls" not in turn:
            self._begin_turn(content)
        elif isinstance(turn["content"], str) and isinstance(content, str):
            turn["content"] += content
        else:
            turn["content"] = [*_as_parts(turn["content"]), *_as_parts(content)]

    def _call(self, call_id: str, name: str, arguments: str) -> None:
        turn = self._turn or self._begin_turn("")
        function = {"name": name, "arguments": arguments}
        call = {"id": call_id, "type": "function", "function": function}
        turn.setdefault("tool_calls", []).append(call)

    def _begin_turn(self, content: str | list[ChatMessage]) -> ChatMessage:
        turn: ChatMessage = {"role": "assistant", "content": content}
        if thought := _joined(self._thoughts):
            turn["reasoning_content"] = thought
        self._add(turn)
        self._turn = turn
        return turn

    def _add_message(self, role: str, content: str | list[ChatMessage], place: str) -> None:
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise InvalidRequest(f"`{place}.role` is none of {known}.", param=f"{place}.role")
        self._add({"role": role, "content": content})

    def _add(self, message: ChatMessage) -> None:
        self.messages.append(message)
        self._turn = None
        self._thoughts = []


def _thought(item: ReasoningItem) -> str:
    """Return the text of a reasoning item, in the fullest form it came back in."""
    if item.content:
        return _joined(part.text for part in item.content)
    own = carried.unpack(item.encrypted_content or "")
    return _joined(part.text for part in item.summary or ()) if own is None else own


def _joined(texts: Iterable[str]) -> str:
    return "\n\n".join(text for text in texts if text)


def _content(content: Content, place: str) -> str | list[ChatMessage]:
    """Return what a chat has for a content: one text if it is nothing but text."""
    if isinstance(content, str):
        return content
    parts = [_part(part, f"{place}[{index}]") for index, part in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _as_parts(content: str | list[ChatMessage]) -> list[ChatMessage]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _part(part: Part, place: str) -> ChatMessage:
    match part:
        case Part(type="refusal"):
            return {"type": "text", "text": _needed(part.refusal, f"{place}.refusal")}
        case Part(type="input_image"):
            url = part.image_url
            image = {"url": _needed(url, f"{place}.image_url"), "detail": part.detail or "auto"}
            return {"type": "image_url", "image_url": image}
        case Part(type="input_file"):
            return {"type": "file", "file": _file(part)}
        case Part() if part.type in _TEXT_TYPES:
            return {"type": "text", "text": _needed(part.text, f"{place}.text")}
        case _:
            raise InvalidRequest(
                f"`{place}.type`: {part.type[:50]!r} is not known here.", param=f"{place}.type"
            )


def _file(part: Part) -> dict[str, str]:
    named = {
        "file_id": part.file_id,
        "file_data": part.file_data,
        "file_url": part.file_url,
        "filename": part.filename,
    }
    return {name: value for name, value in named.items() if value is not None}


def _needed(value: str | None, place: str) -> str:
    if value is None:
        raise InvalidRequest(f"`{place}` is missing.", param=place)
    return value
