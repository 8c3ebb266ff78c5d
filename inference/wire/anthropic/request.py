"""Anthropic's requests: a message to be written, or only its prompt's tokens to be counted.

Both are read by the same shapes and translated by the same lines, so that the count is that of the
request. Checked is what Anthropic checks; unknown fields are ignored. It knows no models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from inference.wire.anthropic import conversation, wording
from inference.wire.anthropic.answer import MessageShape
from inference.wire.anthropic.blocks import Message, SystemContent
from inference.wire.anthropic.dialect import DIALECT
from inference.wire.anthropic.tools import Tool, ToolChoice, tool_fields
from inference.wire.anthropic.wording import invalid
from inference.wire.dialect import InferenceRequest, Operation

MAX_NEURON_INTEGER = 2**31 - 1
"""What a neuron takes; asked for more, it is given this: it clamps to what fits anyway."""
MAX_STOP_SEQUENCES = 32
MAX_STOP_CHARACTERS = 512
"""Both are a neuron's limits."""

_Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Thinking(msgspec.Struct, frozen=True):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Format(msgspec.Struct, frozen=True):
    type: Literal["json_schema"]
    schema: msgspec.Raw


class _OutputConfig(msgspec.Struct, frozen=True):
    effort: str | None = None
    format: _Format | None = None


class _CountBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt is made of."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    messages: list[Message]
    system: SystemContent | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    """Where `output_config.format` was before."""


class _MessagesBody(_CountBody, frozen=True, kw_only=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: _Ratio | None = None
    top_p: _Ratio | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None


@dataclass(frozen=True, slots=True)
class CountRequest:
    """How many tokens does a prompt have?"""

    model: str
    """As the client named it."""
    body: bytes
    """The conversation as a neuron's `/tokenize` takes it, with `model` in it."""


_count_decoder = msgspec.json.Decoder(_CountBody)
_messages_decoder = msgspec.json.Decoder(_MessagesBody)


def parse_messages(body: bytes) -> InferenceRequest:
    """Raises InvalidRequest."""
    asked = wording.decode(body, _messages_decoder)
    fields = {**_prompt_fields(asked), **_answer_fields(asked), "stream": True}
    is_thinking_shown = asked.thinking is None or asked.thinking.display != "omitted"
    return InferenceRequest(
        asked.model,
        stream=bool(asked.stream),
        body=msgspec.json.encode(fields),
        shape=MessageShape(asked.model, is_thinking_shown),
    )


def parse_count_request(body: bytes) -> CountRequest:
    """Raises InvalidRequest."""
    asked = wording.decode(body, _count_decoder)
    return CountRequest(asked.model, msgspec.json.encode(_prompt_fields(asked)))


def encode_count(num_tokens: int) -> bytes:
    return b'{"input_tokens": %d}' % num_tokens


def _prompt_fields(asked: _CountBody) -> dict[str, Any]:
    """Return all that the prompt depends on."""
    if not asked.messages:
        raise invalid("messages", "at least one message is required")
    fields: dict[str, Any] = {
        "model": asked.model,
        "messages": conversation.translated(asked.system, asked.messages),
        **tool_fields(asked.tools or (), asked.tool_choice),
    }
    if asked.thinking is not None and asked.thinking.type != "between_tools":
        is_thinking = asked.thinking.type != "disabled"
        fields["chat_template_kwargs"] = {"enable_thinking": is_thinking}
    if asked.output_config is not None and asked.output_config.effort is not None:
        fields["reasoning_effort"] = asked.output_config.effort
    return fields


def _answer_fields(asked: _MessagesBody) -> dict[str, Any]:
    """Return what the answer alone depends on."""
    choice = asked.tool_choice
    fields = {
        "max_tokens": min(asked.max_tokens, MAX_NEURON_INTEGER),
        "stop": _stops(asked.stop_sequences or ()),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": None if asked.top_k is None else min(asked.top_k, MAX_NEURON_INTEGER),
        "parallel_tool_calls": False if choice and choice.disable_parallel_tool_use else None,
        "response_format": _response_format(asked),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _stops(sequences: Sequence[str]) -> list[str] | None:
    stops = list(dict.fromkeys(sequences))
    if len(stops) > MAX_STOP_SEQUENCES:
        raise invalid("stop_sequences", f"at most {MAX_STOP_SEQUENCES} are supported here")
    for index, stop in enumerate(sequences):
        if not stop.strip():
            what = "each stop sequence must contain non-whitespace"
            raise invalid(f"stop_sequences.{index}", what)
        if len(stop) > MAX_STOP_CHARACTERS:
            what = f"at most {MAX_STOP_CHARACTERS} characters are supported here"
            raise invalid(f"stop_sequences.{index}", what)
    return stops or None


def _response_format(asked: _MessagesBody) -> dict[str, Any] | None:
    wanted = asked.output_config.format if asked.output_config else None
    wanted = wanted or asked.output_format
    if wanted is None:
        return None
    if not bytes(wanted.schema).startswith(b"{"):
        raise invalid("output_config.format.schema", "Expected `object`")
    named = {"name": "answer", "strict": True, "schema": wanted.schema}
    return {"type": "json_schema", "json_schema": named}


MESSAGES = Operation("messages", "/v1/messages", "/v1/chat/completions", DIALECT, parse_messages)
