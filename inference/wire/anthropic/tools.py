"""Anthropic's tools, and the choice among them, as OpenAI has them; the ids of calls both ways.

A tool without a schema is one that Anthropic's machines run or that its models know by heart:
it is left out. Schemas pass through unread. It knows no messages.
"""

from collections.abc import Sequence, Set
from typing import Any, Literal, assert_never

import msgspec

from inference.wire.anthropic.wording import invalid

_NEURONS_PREFIX = "call_"
_CLIENTS_PREFIX = "toolu_"


class Tool(msgspec.Struct, frozen=True):
    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: msgspec.Raw = msgspec.Raw()

    @property
    def is_custom(self) -> bool:
        return self.type in (None, "custom")


class ToolChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def swapped_id(call_id: str) -> str:
    """Return a call's id as the other side has it: `call_x` is `toolu_x`. Its own inverse."""
    for prefix, other in (
        (_NEURONS_PREFIX, _CLIENTS_PREFIX),
        (_CLIENTS_PREFIX, _NEURONS_PREFIX),
    ):
        if call_id.startswith(prefix):
            return other + call_id[len(prefix) :]
    return call_id


def tool_fields(tools: Sequence[Tool], choice: ToolChoice | None) -> dict[str, Any]:
    """Return tools and tool_choice, as far as a neuron is told of them. Raises InvalidRequest."""
    functions = [_function(index, tool) for index, tool in enumerate(tools) if _is_kept(tool)]
    names = {function["name"] for function in functions}
    if len(names) < len(functions):
        raise invalid("tools", "Tool names must be unique")
    chosen = None if choice is None else _choice(choice, tools, names)
    if not functions:
        return {}
    fields: dict[str, Any] = {
        "tools": [{"type": "function", "function": function} for function in functions]
    }
    return fields if chosen is None else {**fields, "tool_choice": chosen}


def _is_kept(tool: Tool) -> bool:
    return tool.is_custom or bytes(tool.input_schema) not in (b"", b"null")


def _function(index: int, tool: Tool) -> dict[str, Any]:
    if not tool.name:
        raise invalid(f"tools.{index}.name", "Field required")
    schema = bytes(tool.input_schema)
    if not schema.startswith(b"{"):
        what = "Expected `object`" if schema else "Field required"
        raise invalid(f"tools.{index}.input_schema", what)
    shown = {} if tool.description is None else {"description": tool.description}
    return {"name": tool.name, **shown, "parameters": tool.input_schema}


def _choice(
    choice: ToolChoice, tools: Sequence[Tool], names: Set[str]
) -> str | dict[str, Any] | None:
    """Return the choice; None where it is of a tool that was left out: nothing can be forced."""
    match choice.type:
        case "none" | "auto":
            return choice.type
        case "any":
            if not tools:
                raise invalid("tool_choice", "may only be specified while providing tools")
            return "required"
        case "tool":
            return _named_choice(choice.name, tools, names)
        case _:
            assert_never(choice.type)


def _named_choice(
    name: str | None, tools: Sequence[Tool], names: Set[str]
) -> dict[str, Any] | None:
    if name is None:
        raise invalid("tool_choice.name", "Field required")
    if name in names:
        return {"type": "function", "function": {"name": name}}
    if all(tool.name != name for tool in tools):
        raise invalid("tool_choice.name", f"Tool {name[:200]!r} not found in provided tools")
    return None
