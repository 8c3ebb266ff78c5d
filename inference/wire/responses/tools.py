"""Tools, the choice among them and the answer's format: flat in Responses, nested in a chat.

Only functions can be offered to a model here; tools of other types run on their inventor's own
machines and are ignored. It knows no items.
"""

from collections.abc import Sequence
from typing import Any, Literal, assert_never

import msgspec

from inference.wire import json_body
from inference.wire.errors import InvalidRequest

Fields = dict[str, Any]


class FunctionTool(msgspec.Struct, frozen=True, omit_defaults=True, tag="function"):
    name: str
    description: str | None = None
    parameters: dict[str, msgspec.Raw] | None = None
    strict: bool | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str


_kind_decoder = msgspec.json.Decoder(_Kind)
_function_decoder = msgspec.json.Decoder(FunctionTool)


def read_tools(raws: Sequence[msgspec.Raw]) -> list[FunctionTool]:
    """Return the functions among the tools. Raises InvalidRequest."""
    found = []
    for index, raw in enumerate(raws):
        place = f"tools[{index}]"
        if json_body.decode_part(raw, _kind_decoder, place).type == "function":
            found.append(json_body.decode_part(raw, _function_decoder, place))
            if not found[-1].name:
                raise InvalidRequest(f"`{place}.name` is empty.", param=f"{place}.name")
    return found


class _NamedFunction(msgspec.Struct, frozen=True, tag="function"):
    name: str


class _AllowedTool(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    name: str | None = None


class _AllowedTools(msgspec.Struct, frozen=True, tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[_AllowedTool]


Choice = Literal["none", "auto", "required"] | _NamedFunction | _AllowedTools


def chat_tools(tools: Sequence[FunctionTool], choice: Choice | None) -> Fields:
    """Return the fields `tools` and `tool_choice` of a chat. Raises InvalidRequest."""
    wanted: str | Fields | None
    match choice:
        case _NamedFunction(name):
            wanted = {"type": "function", "function": {"name": name}}
        case _AllowedTools(mode, allowed):
            wanted = mode
            names = {tool.name for tool in allowed if tool.type == "function"}
            tools = [tool for tool in tools if tool.name in names]
        case "none" | "auto" | "required" | None:
            wanted = choice
        case _:
            assert_never(choice)
    _check_choice(tools, choice)
    fields: Fields = {"tools": [_nested(tool) for tool in tools]} if tools else {}
    return fields if wanted is None else {**fields, "tool_choice": wanted}


def _check_choice(tools: Sequence[FunctionTool], choice: Choice | None) -> None:
    names = {tool.name for tool in tools}
    match choice:
        case _NamedFunction(name):
            is_there = name in names
        case "required" | _AllowedTools("required"):
            is_there = bool(names)
        case _:
            is_there = True
    if not is_there:
        raise InvalidRequest(
            "`tool_choice` asks for a tool that is not there; only functions are offered here.",
            param="tool_choice",
        )


def _nested(tool: FunctionTool) -> Fields:
    named = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }
    function = {name: value for name, value in named.items() if value is not None}
    return {"type": "function", "function": function}


class TextFormat(msgspec.Struct, frozen=True, omit_defaults=True, tag="text"):
    pass


class JsonFormat(msgspec.Struct, frozen=True, omit_defaults=True, tag="json_object"):
    pass


class SchemaFormat(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="json_schema", rename={"form": "schema"}
):
    form: dict[str, msgspec.Raw]
    name: str = "response"
    description: str | None = None
    strict: bool | None = None


Format = TextFormat | JsonFormat | SchemaFormat


def chat_format(wanted: Format | None) -> Fields:
    """Return the field `response_format` of a chat, none where any text will do."""
    match wanted:
        case None | TextFormat():
            return {}
        case JsonFormat():
            return {"response_format": {"type": "json_object"}}
        case SchemaFormat(form, name, _, strict):
            schema = {"name": name, "schema": form, "strict": strict}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case _:
            assert_never(wanted)
