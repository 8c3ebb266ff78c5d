"""An OpenAI chat request as a neuron takes it: bytes in, ChatRequest out, or a clear refusal.

Strict about the shapes the neuron relies on; what it does not know is ignored, and what it knows
but does not do is refused by name, never silently dropped. It knows no tokens, no models and no
HTTP.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from neuron_agent.errors import BadRequest
from neuron_agent.wire.conversation import (
    Conversation,
    ForcedCall,
    RenderInput,
    forced_call,
    render_input,
)
from neuron_agent.wire.json_body import Body, check_range, decode, parse_object, unsupported
from neuron_agent.wire.sampling_fields import (
    MAX_LOGPROBS,
    MAX_TOKENS,
    SamplingBody,
    SamplingFields,
    check_sampling,
)


class StreamOptions(Body, frozen=True):
    include_usage: bool | None = None


class SchemaFormat(msgspec.Struct, frozen=True, rename={"definition": "schema"}):
    definition: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Body, frozen=True):
    type: str = "text"
    json_schema: SchemaFormat | None = None


class ChatBody(Body, frozen=True):
    """The fields of a chat alone that are looked at, with the types they must have."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Any] | None = None
    function_call: Any = None


class JsonForm(msgspec.Struct, frozen=True):
    """The answer must be JSON under a schema, or calls where there are tools."""

    schema: dict[str, Any]
    is_strict: bool = False


AnswerForm = JsonForm | ForcedCall
"""What the answer must look like, where that is to be enforced."""


class ChatRequest(msgspec.Struct, frozen=True):
    """A request that makes sense."""

    model: str
    conversation: RenderInput
    is_streaming: bool
    includes_usage: bool
    sampling: SamplingFields
    num_logprobs: int | None = None
    """None = none; 0 = those of the chosen tokens; k = of the k best too."""
    answer_form: AnswerForm | None = None
    allows_parallel_calls: bool = True


def parse_chat_request(data: bytes) -> ChatRequest:
    """Return the request in a body. Raises BadRequest, or Unprocessable for what no text is."""
    raw = parse_object(data)
    talk = decode(raw, Conversation)
    body = decode(raw, ChatBody)
    _refuse_unsupported(body)
    options = body.stream_options
    return ChatRequest(
        model=talk.model,
        conversation=render_input(talk, raw),
        is_streaming=bool(body.stream),
        includes_usage=bool(options and options.include_usage),
        sampling=check_sampling(_with_newer_limit(decode(raw, SamplingBody), body)),
        num_logprobs=_num_logprobs(body),
        answer_form=_answer_form(talk, body),
        allows_parallel_calls=body.parallel_tool_calls is not False,
    )


def _with_newer_limit(sampling: SamplingBody, body: ChatBody) -> SamplingBody:
    """Return the fields with the newer name of max_tokens, which wins."""
    check_range("max_completion_tokens", body.max_completion_tokens, 1, MAX_TOKENS)
    if body.max_completion_tokens is None:
        return sampling
    return replace(sampling, max_tokens=body.max_completion_tokens)


def _num_logprobs(body: ChatBody) -> int | None:
    check_range("top_logprobs", body.top_logprobs, 0, MAX_LOGPROBS)
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _answer_form(talk: Conversation, body: ChatBody) -> AnswerForm | None:
    call = forced_call(talk)
    # A forced call leaves no text that a response_format could be about.
    return call or _json_form(body.response_format or ResponseFormat())


def _json_form(wanted: ResponseFormat) -> JsonForm | None:
    match wanted.type:
        case "text":
            return None
        case "json_object":
            return JsonForm({"type": "object"})
        case "json_schema":
            return _schema_form(wanted.json_schema)
        case _:
            raise BadRequest(
                "response_format.type must be text, json_object or json_schema",
                param="response_format.type",
            )


def _schema_form(wanted: SchemaFormat | None) -> JsonForm:
    if wanted is None:
        param = "response_format.json_schema"
        raise BadRequest(f"{param} is missing", param=param)
    schema = {"type": "object"} if wanted.definition is None else wanted.definition
    return JsonForm(schema, bool(wanted.strict))


def _refuse_unsupported(body: ChatBody) -> None:
    """Refuse what would change the answer and is not done; its neutral value is welcome."""
    if body.functions:
        raise unsupported("functions")
    if body.function_call not in (None, "none", "auto"):
        raise unsupported("function_call")
