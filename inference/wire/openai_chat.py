"""OpenAI's chat completions, as far as the gateway reads them: whom it asks, and what it cost.

The body goes to the neuron as the bytes that came; only an alias is replaced by the name behind
it. Everything else about a request is the neuron's to judge. It knows no HTTP and no fleet.
"""

from dataclasses import dataclass, replace

import msgspec

from inference.wire import json_body
from inference.wire.errors import InvalidRequest, NeuronAnswered, UpstreamError, without_paths
from neuron_agent.protocol import ControlFrame, ErrorBody, Usage

MAX_COUNT = 2**31 - 1
"""The most tokens that are believed, and that a record has room for."""

DIALECT = "openai"
PATH = "/v1/chat/completions"


class _Message(msgspec.Struct):
    role: str


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None


class _StreamedError(msgspec.Struct):
    class Detail(msgspec.Struct):
        code: str | None = None

    error: Detail


_body_decoder = msgspec.json.Decoder(_Body)
_answer_decoder = msgspec.json.Decoder(_Answer)
_control_decoder = msgspec.json.Decoder(ControlFrame)
_error_decoder = msgspec.json.Decoder(ErrorBody)
_streamed_error_decoder = msgspec.json.Decoder(_StreamedError)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    model: str
    """As the client named it: a model or an alias."""
    stream: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished answer says of itself."""

    usage: Usage | None = None
    finish_reason: str = ""


def parse_request(body: bytes) -> ChatRequest:
    """Raises InvalidRequest."""
    decoded = json_body.decode(body, _body_decoder)
    if not decoded.model:
        raise InvalidRequest("`model` is empty.", param="model")
    if not decoded.messages:
        raise InvalidRequest("`messages` is empty.", param="messages")
    return ChatRequest(decoded.model, bool(decoded.stream), body)


def body_for(request: ChatRequest, model_id: str) -> bytes:
    """Return the body with the model's own name in it, all other values byte for byte."""
    if model_id == request.model:
        return request.body
    fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model_id))
    return msgspec.json.encode(fields)


def read_outcome(answer: bytes) -> Outcome:
    """Return usage and finish reason of a whole answer; of an unreadable one nothing."""
    try:
        decoded = _answer_decoder.decode(answer)
    except msgspec.DecodeError:
        return Outcome()
    finish_reason = decoded.choices[0].finish_reason if decoded.choices else None
    return Outcome(_usage(decoded.usage), finish_reason or "")


def read_control(frame: bytes) -> ControlFrame:
    """Return a control frame; one that cannot be read says nothing."""
    try:
        control = _control_decoder.decode(frame)
    except msgspec.DecodeError:
        return ControlFrame()
    is_credible = control.usage is _believable(control.usage)
    return control if is_credible else replace(control, usage=None)


def read_streamed_error(data: bytes) -> str:
    """Return the code of an error frame, "" if the frame is none."""
    if not data.startswith(b'{"error"'):
        return ""
    try:
        return _streamed_error_decoder.decode(data).error.code or "error"
    except msgspec.DecodeError:
        return "error"


def read_refusal(
    status: int, body: bytes, retry_after: str, model_id: str, shown_as: str
) -> NeuronAnswered | UpstreamError:
    """Return a neuron's error answer as the error the client gets.

    The model is named as the client named it. What is not in OpenAI's shape did not come from a
    neuron's own code and tells the client nothing, and 401 is about Cortex's token, not theirs.
    """
    try:
        detail = _error_decoder.decode(body).error
    except msgspec.DecodeError:
        return UpstreamError(f"The neuron answered with status {status}.")
    if status in (401, 403) or not 400 <= status <= 599:
        return UpstreamError("The neuron refused Cortex.")
    message = without_paths(detail.message).replace(model_id, shown_as)
    return NeuronAnswered(
        message,
        status=status,
        type=detail.type,
        code=detail.code,
        param=detail.param,
        retry_after_seconds=_retry_seconds(status, retry_after),
    )


def _retry_seconds(status: int, header: str) -> int | None:
    if header.isascii() and header.isdigit():
        return min(int(header[:9]), 300)
    return 1 if status == 503 else None


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return _believable(
        Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
            reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
        )
    )


def _believable(usage: Usage | None) -> Usage | None:
    """Return the counts, None if one of them can be none: then they are unknown."""
    if usage is None:
        return None
    counts = (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    return usage if all(0 <= count <= MAX_COUNT for count in counts) else None
