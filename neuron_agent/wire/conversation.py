"""A conversation as chat and tokenize requests carry it: messages, tools, template arguments.

Strict about the shapes a template relies on; fields that nobody reads are left where they are. It
knows no tokens, no models and no HTTP.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from neuron_agent.errors import BadRequest, Unprocessable
from neuron_agent.text.chat_template import RESERVED_ARGUMENTS
from neuron_agent.wire.json_body import Body, unsupported

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


class Part(Body, frozen=True):
    type: str
    text: str | None = None


class Function(Body, frozen=True):
    name: str
    arguments: str | None = None


class ToolCall(Body, frozen=True, omit_defaults=False):
    function: Function
    id: str | None = None
    type: str = "function"


class Message(Body, frozen=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class ToolFunction(Body, frozen=True):
    name: str
    parameters: dict[str, Any] | None = None


class Tool(Body, frozen=True):
    function: ToolFunction
    type: str = "function"


class Conversation(Body, frozen=True):
    """What a template is rendered from; the common part of chat and tokenize requests."""

    model: str
    messages: list[Message]
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class RenderInput(msgspec.Struct, frozen=True):
    """Messages, tools and arguments as the template gets them."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    template_kwargs: dict[str, Any]


class ForcedCall(msgspec.Struct, frozen=True):
    """The answer must be a call: of the named tool, of any without a name."""

    name: str | None


def render_input(body: Conversation, raw: Mapping[str, Any]) -> RenderInput:
    """Return what the template is given. Tools go as they came: templates show every field."""
    if not body.messages:
        raise BadRequest("messages is empty", param="messages")
    messages = [_message(message, index) for index, message in enumerate(body.messages)]
    messages = list(_with_results_in_order(messages))
    extra = dict(body.chat_template_kwargs or {})
    taken = sorted(RESERVED_ARGUMENTS & extra.keys())
    if taken:
        raise BadRequest(
            f"chat_template_kwargs cannot set {taken[0]!r}", param="chat_template_kwargs"
        )
    if body.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", body.reasoning_effort)
        # Most templates know no more than this of it.
        extra.setdefault("enable_thinking", body.reasoning_effort != "none")
    _check_tools(body.tools or [])
    shows_tools = bool(body.tools) and body.tool_choice != "none"
    return RenderInput(messages, list(raw["tools"]) if shows_tools else [], extra)


def forced_call(body: Conversation) -> ForcedCall | None:
    """Return the call a tool_choice enforces, None if it leaves the choice. Raises BadRequest."""
    match body.tool_choice:
        case None | "auto" | "none":
            return None
        case "required":
            name = None
        case {"type": "function", "function": {"name": str(name)}}:
            pass
        case {"type": "allowed_tools"}:
            raise unsupported("tool_choice")
        case _:
            raise BadRequest(
                "tool_choice must be none, auto, required or a tool", param="tool_choice"
            )
    names = {tool.function.name for tool in body.tools or ()}
    if not names or (name is not None and name not in names):
        raise BadRequest("tool_choice asks for a tool that is not there", param="tool_choice")
    return ForcedCall(name)


def _check_tools(tools: list[Tool]) -> None:
    for index, tool in enumerate(tools):
        if not tool.function.name:
            param = f"tools[{index}].function.name"
            raise BadRequest(f"{param} is empty", param=param)


def _with_results_in_order(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the messages, the results of parallel calls in the order of the calls.

    Clients send them as they come in, told apart by ids; most templates show no ids.
    """
    places: dict[str | None, int] = {}
    results: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        yield from _sorted_results(results, places)
        results = []
        calls = message.get("tool_calls") or ()
        places = {call.get("id"): place for place, call in enumerate(calls)}
        yield message
    yield from _sorted_results(results, places)


def _sorted_results(
    results: list[dict[str, Any]], places: Mapping[str | None, int]
) -> list[dict[str, Any]]:
    return sorted(results, key=lambda result: places.get(result.get("tool_call_id"), len(places)))


def _message(message: Message, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise BadRequest(f"{where}.role must be one of {known}", param=f"{where}.role")
    if message.content is None and message.role != "assistant":
        raise BadRequest(f"{where}.content is missing", param=f"{where}.content")
    prepared: dict[str, Any] = msgspec.to_builtins(message)
    if isinstance(message.content, list):
        prepared["content"] = _join_parts(message.content, where)
    return prepared


def _join_parts(parts: list[Part], where: str) -> str:
    """Return the text of content parts, nothing added between them."""
    texts = []
    for index, part in enumerate(parts):
        param = f"{where}.content[{index}]"
        if part.type not in ("text", "refusal"):
            raise Unprocessable(
                f"{param}: this model takes text, not {part.type!r}", code="wrong_modality"
            )
        if part.text is None:
            raise BadRequest(f"{param}.text is missing", param=f"{param}.text")
        texts.append(part.text)
    return "".join(texts)
