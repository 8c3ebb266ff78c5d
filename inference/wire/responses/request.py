"""OpenAI's Responses, as a request: what is asked, as a chat, and what the answer repeats of it.

Nothing is stored: what refers to something stored is refused by name. Of all else that a model here
cannot do, only what would change the meaning of the answer is refused. It knows no fleet.
"""

from typing import Annotated, Any

import msgspec

from inference.wire import json_body
from inference.wire.dialect import InferenceRequest, Operation
from inference.wire.errors import InvalidRequest
from inference.wire.openai import DIALECT
from inference.wire.responses.answer import ResponseShape
from inference.wire.responses.conversation import chat_messages
from inference.wire.responses.input_items import added_tools
from inference.wire.responses.tools import (
    Choice,
    Format,
    TextFormat,
    Toolbox,
    chat_format,
    chat_tools,
    read_tools,
)

CARRIED = "reasoning.encrypted_content"

MAX_ITEMS = 100_000
MAX_TOOLS = 10_000
"""Far more than any model could read; a million would keep all others waiting."""

_Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
_Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
_Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Reasoning(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    """What `summary` was called before."""


class _Text(msgspec.Struct, frozen=True, omit_defaults=True):
    format: Format | None = None
    verbosity: str | None = None


class _Body(msgspec.Struct, frozen=True):
    """What is looked at. Unknown fields are ignored."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    input: str | Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_ITEMS)]
    instructions: str | None = None
    stream: bool | None = None
    tools: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    include: list[str] | None = None
    max_output_tokens: _Tokens | None = None
    temperature: _Temperature | None = None
    top_p: _Ratio | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    truncation: str | None = None
    background: bool | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None


_decoder = msgspec.json.Decoder(_Body)


def parse_response_request(body: bytes) -> InferenceRequest:
    """Raises InvalidRequest."""
    asked = json_body.decode(body, _decoder)
    _refuse_what_is_stored(asked)
    toolbox = _toolbox(asked)
    chat = {
        "model": asked.model,
        "messages": chat_messages(asked.instructions, asked.input),
        "stream": True,
        **chat_tools(toolbox.offers, asked.tool_choice),
        **chat_format(asked.text.format if asked.text else None),
        **_sampling(asked),
    }
    shape = ResponseShape(
        _repeated(asked, toolbox),
        toolbox.namespaces,
        toolbox.customs,
        summarizes_reasoning=_wants_summary(asked.reasoning),
        carries_reasoning=CARRIED in (asked.include or ()),
    )
    return InferenceRequest(asked.model, bool(asked.stream), msgspec.json.encode(chat), shape)


RESPONSES = Operation(
    name="responses",
    path="/v1/responses",
    neuron_path="/v1/chat/completions",
    dialect=DIALECT,
    parse_request=parse_response_request,
)


def _refuse_what_is_stored(asked: _Body) -> None:
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(asked, name) is not None:
            raise InvalidRequest(
                f"`{name}` is not supported: nothing is stored here. Send all items as `input`.",
                param=name,
            )
    if asked.background:
        raise InvalidRequest(
            "`background` is not supported: nothing is stored here.", param="background"
        )


def _toolbox(asked: _Body) -> Toolbox:
    toolbox = read_tools(asked.tools or ())
    if not isinstance(asked.input, str):
        for place, added in added_tools(asked.input):
            toolbox = toolbox.and_also(read_tools(added, place))
    return toolbox


def _sampling(asked: _Body) -> dict[str, Any]:
    """Without a limit of tokens the model's own applies, as Codex expects."""
    fields = {
        "max_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _wants_summary(reasoning: _Reasoning | None) -> bool:
    if reasoning is None:
        return False
    return (reasoning.summary or reasoning.generate_summary or "none") != "none"


def _repeated(asked: _Body, toolbox: Toolbox) -> dict[str, Any]:
    """Return what OpenAI's response has of its request; null stands for the model's default."""
    reasoning, text = asked.reasoning or _Reasoning(), asked.text or _Text()
    summary = reasoning.summary or reasoning.generate_summary
    return {
        "model": asked.model,
        "background": False,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort, "summary": summary},
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": asked.temperature,
        "text": _Text(text.format or TextFormat(), text.verbosity),
        "tool_choice": asked.tool_choice or "auto",
        "tools": toolbox.repeated,
        "top_logprobs": 0,
        "top_p": asked.top_p,
        "truncation": asked.truncation or "disabled",
        "user": asked.user,
    }
