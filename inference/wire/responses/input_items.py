"""The shapes of input items: each is read as its `type` demands, by its place in the request.

Fields that nobody reads are left out. Types that nobody reads either are the business of who asks
for an item: the union here has only what can be shown to a model.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from inference.wire import json_body
from inference.wire.errors import InvalidRequest


class Part(msgspec.Struct, frozen=True):
    """A piece of content; which of the fields it must have depends on its type."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    detail: str | None = None
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None


Content = str | list[Part]


class MessageItem(msgspec.Struct, frozen=True):
    role: str
    content: Content


class FunctionCallItem(msgspec.Struct, frozen=True):
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None


class CustomToolCallItem(msgspec.Struct, frozen=True):
    """A call of a tool that takes any text."""

    call_id: str
    name: str
    input: str
    namespace: str | None = None


class LocalShellCallItem(msgspec.Struct, frozen=True):
    call_id: str
    action: msgspec.Raw


class CallOutputItem(msgspec.Struct, frozen=True):
    call_id: str
    output: Content


class ReasoningText(msgspec.Struct, frozen=True):
    text: str


class ReasoningItem(msgspec.Struct, frozen=True):
    content: list[ReasoningText] | None = None
    summary: list[ReasoningText] | None = None
    encrypted_content: str | None = None


InputItem = (
    MessageItem
    | FunctionCallItem
    | CustomToolCallItem
    | LocalShellCallItem
    | CallOutputItem
    | ReasoningItem
)


class _Kind(msgspec.Struct, frozen=True):
    type: str | None = None
    role: Any = None


_kind_decoder = msgspec.json.Decoder(_Kind)
_DECODERS: dict[str, msgspec.json.Decoder[InputItem]] = {
    "message": msgspec.json.Decoder(MessageItem),
    "function_call": msgspec.json.Decoder(FunctionCallItem),
    "function_call_output": msgspec.json.Decoder(CallOutputItem),
    "custom_tool_call": msgspec.json.Decoder(CustomToolCallItem),
    "custom_tool_call_output": msgspec.json.Decoder(CallOutputItem),
    "local_shell_call": msgspec.json.Decoder(LocalShellCallItem),
    "reasoning": msgspec.json.Decoder(ReasoningItem),
}
_ADDS_TOOLS = "additional_tools"
_KEPT_ELSEWHERE = frozenset({"item_reference", "compaction", "compaction_summary"})
"""Only the service that keeps or wrote what they stand for can read them, and they stand for much:
without it the model would answer another question than the one that was asked."""


class _AddedTools(msgspec.Struct, frozen=True):
    tools: list[msgspec.Raw]


_added_decoder = msgspec.json.Decoder(_AddedTools)


def added_tools(given: Sequence[msgspec.Raw]) -> Iterator[tuple[str, list[msgspec.Raw]]]:
    """Yield the tools that items bring, and where they stand. Raises InvalidRequest.

    Codex sends all of its tools so to the newer of the models whose names it knows.
    """
    for index, raw in enumerate(given):
        place = f"input[{index}]"
        if _ADDS_TOOLS.encode() not in bytes(raw):
            continue
        if json_body.decode_part(raw, _kind_decoder, place).type == _ADDS_TOOLS:
            item = json_body.decode_part(raw, _added_decoder, place)
            yield f"{place}.tools", item.tools


def read_item(raw: msgspec.Raw, place: str) -> InputItem | None:
    """Return the item, None if it is of a type that says nothing to a model here.

    Raises InvalidRequest.
    """
    kind = json_body.decode_part(raw, _kind_decoder, place)
    type_ = kind.type or ("item_reference" if kind.role is None else "message")
    if type_ in _KEPT_ELSEWHERE:
        raise InvalidRequest(
            f"`{place}`: items of type {type_!r} stand for what is stored elsewhere, "
            "and nothing is stored here; send the items themselves.",
            param=place,
        )
    decoder = _DECODERS.get(type_)
    return None if decoder is None else json_body.decode_part(raw, decoder, place)
