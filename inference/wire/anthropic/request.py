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
from inference.wire.anthropic.blocks import AssistantMessage, Message, SystemContent
from inference.wire.anthropic.dialect import DIALECT
from inference.wire.anthropic.facts import Thoughts
from inference.wire.anthropic.tools import Tool, ToolChoice, tool_fields
from inference.wire.anthropic.wording import invalid
from inference.wire.dialect import InferenceRequest, Operation
from inference.wire.errors import InvalidRequest

MAX_NEURON_INTEGER = 2**31 - 1
"""What a neuron takes; asked for more, it is given this: it clamps to what fits anyway."""
MAX_STOP_SEQUENCES = 32
MAX_STOP_CHARACTERS = 512
"""Both are a neuron's limits."""
MAX_MESSAGES = 100_000
"""Anthropic's limit. Here their blocks count too: a million empty ones would keep all waiting."""
MAX_TOOLS = 10_000

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
    tools: Annotated[list[Tool], msgspec.Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    """Where `output_config.format` was before."""


class _MessagesBody(_CountBody, frozen=True, kw_only=True):
    max_tokens: Annotated[int, msgspec.Meta(ge=0)]
    """0: the prompt is to be read, so that it is in the cache, and nothing is to be said."""
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: _Ratio | None = None
    top_p: _Ratio | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    context_management: dict[str, msgspec.Raw] | None = None
    thread: dict[str, msgspec.Raw] | None = None
    compaction: dict[str, msgspec.Raw] | None = None


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
    _refuse_what_would_change_the_answer(asked)
    fields = {**_prompt_fields(asked), **_answer_fields(asked), "stream": True}
    return InferenceRequest(
        asked.model,
        stream=bool(asked.stream),
        body=msgspec.json.encode(fields),
        shape=MessageShape(
            asked.model,
            _thoughts(asked.thinking),
            has_edits=bool(asked.context_management),
            is_silent=asked.max_tokens == 0,
        ),
    )


def parse_count_request(body: bytes) -> CountRequest:
    """Raises InvalidRequest."""
    asked = wording.decode(body, _count_decoder)
    return CountRequest(asked.model, msgspec.json.encode(_prompt_fields(asked)))


def encode_count(num_tokens: int) -> bytes:
    return b'{"input_tokens": %d}' % num_tokens


def _refuse_what_would_change_the_answer(asked: _MessagesBody) -> None:
    """Refuse what is not done here and cannot be ignored: the answer would be to something else."""
    if asked.thread is not None:
        # The SDKs' tool runners ask for it, and go on without where they find this code.
        raise InvalidRequest(
            "thread: No conversations are kept here; send all messages without it",
            param="thread",
            extra={"error_code": "thread_unsupported_request"},
        )
    if asked.compaction is not None:
        raise invalid("compaction", "is not done here; ask for a summary in a message")
    if asked.messages and isinstance(asked.messages[-1], AssistantMessage):
        raise InvalidRequest(
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message.",
            param="messages",
        )


def _thoughts(thinking: _Thinking | None) -> Thoughts:
    if thinking is None or thinking.type == "disabled":
        return Thoughts.UNASKED
    return Thoughts.OMITTED if thinking.display == "omitted" else Thoughts.SHOWN


def _prompt_fields(asked: _CountBody) -> dict[str, Any]:
    """Return all that the prompt depends on."""
    _check_number(asked.messages)
    fields: dict[str, Any] = {
        "model": asked.model,
        "messages": conversation.translated(asked.system, asked.messages),
        **tool_fields(asked.tools or (), asked.tool_choice),
    }
    thinking = "disabled" if asked.thinking is None else asked.thinking.type
    if thinking != "between_tools":
        fields["chat_template_kwargs"] = {"enable_thinking": thinking != "disabled"}
    if asked.output_config is not None and asked.output_config.effort is not None:
        fields["reasoning_effort"] = asked.output_config.effort
    return fields


def _check_number(messages: Sequence[Message]) -> None:
    if not messages:
        raise invalid("messages", "at least one message is required")
    contents = (message.content for message in messages)
    num_blocks = sum(1 if isinstance(content, str) else len(content) for content in contents)
    if max(len(messages), num_blocks) > MAX_MESSAGES:
        raise invalid("messages", f"at most {MAX_MESSAGES} messages and blocks can be sent")


def _answer_fields(asked: _MessagesBody) -> dict[str, Any]:
    """Return what the answer alone depends on."""
    choice = asked.tool_choice
    fields = {
        "max_tokens": min(max(asked.max_tokens, 1), MAX_NEURON_INTEGER),
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
