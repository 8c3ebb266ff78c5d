"""Tools, the choice among them and the answer's format: flat in Responses, nested in a chat.

Functions are offered to a model, in namespaces or not, and tools that take any text as functions of
one argument; tools of other types run on their inventor's own machines and are ignored. It knows
no items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, assert_never

import msgspec

from inference.wire import json_body
from inference.wire.errors import InvalidRequest
from inference.wire.responses import freeform
from inference.wire.responses.freeform import CustomTool

Fields = dict[str, Any]


class FunctionTool(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, msgspec.Raw] | None = None
    strict: bool | None = None


class _Namespace(msgspec.Struct, frozen=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    tools: list[msgspec.Raw]


class _Kind(msgspec.Struct, frozen=True):
    type: str


_kind_decoder = msgspec.json.Decoder(_Kind)
_function_decoder = msgspec.json.Decoder(FunctionTool)
_custom_decoder = msgspec.json.Decoder(CustomTool)
_namespace_decoder = msgspec.json.Decoder(_Namespace)


def name_for_model(namespace: str | None, name: str) -> str:
    """Return what a function is called in a chat, which knows no namespaces."""
    return name if namespace is None else f"{namespace}__{name}"


@dataclass(frozen=True, slots=True)
class Offer:
    """A function that a model is offered; Codex has those of its tool servers in namespaces."""

    function: FunctionTool | CustomTool
    namespace: str | None = None

    @property
    def is_custom(self) -> bool:
        return isinstance(self.function, CustomTool)

    @property
    def shown_name(self) -> str:
        return name_for_model(self.namespace, self.function.name)


@dataclass(frozen=True, slots=True)
class Toolbox:
    offers: tuple[Offer, ...] = ()
    repeated: tuple[msgspec.Raw, ...] = ()
    """The tools they came from, as the answer repeats them."""

    @property
    def namespaces(self) -> dict[str, tuple[str, str]]:
        """Names that a model calls which are not a function's own: its namespace and its name."""
        named = [offer for offer in self.offers if offer.namespace is not None]
        return {offer.shown_name: (offer.namespace or "", offer.function.name) for offer in named}

    @property
    def customs(self) -> frozenset[str]:
        """Names that a model calls with a text."""
        return frozenset(offer.shown_name for offer in self.offers if offer.is_custom)

    def and_also(self, added: "Toolbox") -> "Toolbox":
        """Return it with what was added later; of two with one name that is the newer."""
        offers = {offer.shown_name: offer for offer in (*self.offers, *added.offers)}
        return Toolbox(tuple(offers.values()), self.repeated)


def read_tools(raws: Sequence[msgspec.Raw], place: str = "tools") -> Toolbox:
    """Return what can be offered of the tools. Raises InvalidRequest."""
    offers: list[Offer] = []
    repeated: list[msgspec.Raw] = []
    for index, raw in enumerate(raws):
        found = _read_tool(raw, f"{place}[{index}]")
        if found is not None:
            offers += found
            repeated.append(raw)
    return Toolbox(tuple(offers), tuple(repeated))


def _read_tool(raw: msgspec.Raw, place: str) -> list[Offer] | None:
    match json_body.decode_part(raw, _kind_decoder, place).type:
        case "namespace":
            namespace = json_body.decode_part(raw, _namespace_decoder, place)
            return list(_members(namespace, place))
        case type_:
            offer = _offer(raw, type_, place, None)
            return None if offer is None else [offer]


def _members(namespace: _Namespace, place: str) -> Iterator[Offer]:
    for index, raw in enumerate(namespace.tools):
        inside = f"{place}.tools[{index}]"
        type_ = json_body.decode_part(raw, _kind_decoder, inside).type
        if offer := _offer(raw, type_, inside, namespace.name):
            yield offer


def _offer(raw: msgspec.Raw, type_: str, place: str, namespace: str | None) -> Offer | None:
    match type_:
        case "function":
            return Offer(json_body.decode_part(raw, _function_decoder, place), namespace)
        case "custom":
            return Offer(json_body.decode_part(raw, _custom_decoder, place), namespace)
        case _:
            return None


class _NamedFunction(msgspec.Struct, frozen=True, tag="function"):
    name: str


class _NamedCustom(msgspec.Struct, frozen=True, tag="custom"):
    name: str


class _AllowedTool(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    name: str | None = None


class _AllowedTools(msgspec.Struct, frozen=True, tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[_AllowedTool]


Choice = Literal["none", "auto", "required"] | _NamedFunction | _NamedCustom | _AllowedTools


def chat_tools(offers: Sequence[Offer], choice: Choice | None) -> Fields:
    """Return the fields `tools` and `tool_choice` of a chat. Raises InvalidRequest."""
    wanted: str | Fields | None
    match choice:
        case _NamedFunction(name) | _NamedCustom(name):
            wanted = {"type": "function", "function": {"name": name}}
        case _AllowedTools(mode, allowed):
            wanted = mode
            offers = _allowed(offers, allowed)
        case "none" | "auto" | "required" | None:
            wanted = choice
        case _:
            assert_never(choice)
    _check_choice(offers, choice)
    fields: Fields = {"tools": [_nested(offer) for offer in offers]} if offers else {}
    return fields if wanted is None else {**fields, "tool_choice": wanted}


def _allowed(offers: Sequence[Offer], allowed: Sequence[_AllowedTool]) -> list[Offer]:
    names = {tool.name for tool in allowed if tool.type in ("function", "custom")}
    namespaces = {tool.name for tool in allowed if tool.type == "namespace"}
    return [
        offer
        for offer in offers
        if offer.function.name in names
        or (offer.namespace is not None and offer.namespace in namespaces)
    ]


def _check_choice(offers: Sequence[Offer], choice: Choice | None) -> None:
    match choice:
        case _NamedFunction(name) | _NamedCustom(name):
            is_there = any(offer.shown_name == name for offer in offers)
        case "required" | _AllowedTools("required"):
            is_there = bool(offers)
        case _:
            is_there = True
    if not is_there:
        raise InvalidRequest(
            "`tool_choice` asks for a tool that is not there; only functions and custom tools are "
            "offered here.",
            param="tool_choice",
        )


def _nested(offer: Offer) -> Fields:
    named: Fields = {"name": offer.shown_name}
    match offer.function:
        case FunctionTool(_, description, parameters, strict):
            named |= {"description": description, "parameters": parameters, "strict": strict}
        case CustomTool() as tool:
            told = tool.shown_description or None
            named |= {"description": told, "parameters": freeform.PARAMETERS}
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
