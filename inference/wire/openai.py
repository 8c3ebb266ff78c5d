"""OpenAI's dialect, and what goes to a neuron as it came: chat, text completions, embeddings.

Read is what the gateway must know, and what would make no sense anywhere: nobody waits for a load
to hear of a wrong type. Ranges, and what a model can do, are the neuron's to judge. It knows no
HTTP and no fleet.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

from inference.wire import json_body
from inference.wire.dialect import Dialect, ErrorAnswer, InferenceRequest, Operation
from inference.wire.errors import CortexError, InvalidRequest, error_headers
from inference.wire.sse import progress_comment

Names = Annotated[str, msgspec.Meta(min_length=1)]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class _Part(msgspec.Struct):
    type: str


class _Message(msgspec.Struct):
    role: Role
    content: str | list[_Part] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Sampling(msgspec.Struct):
    """The fields that chat and text completions share."""

    model: Names
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class _ChatBody(_Sampling, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: int | None = None
    tools: list[dict[str, msgspec.Raw]] | None = None
    response_format: dict[str, msgspec.Raw] | None = None


_Prompts = str | list[str | int | list[int]]


class _CompletionBody(_Sampling, kw_only=True):
    prompt: _Prompts


class _EmbeddingBody(msgspec.Struct):
    model: Names
    input: _Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


_chat_decoder = msgspec.json.Decoder(_ChatBody)
_completion_decoder = msgspec.json.Decoder(_CompletionBody)
_embedding_decoder = msgspec.json.Decoder(_EmbeddingBody)


def parse_chat(body: bytes) -> InferenceRequest:
    """Raises InvalidRequest."""
    decoded = json_body.decode(body, _chat_decoder)
    return InferenceRequest(decoded.model, bool(decoded.stream), body)


def parse_completion(body: bytes) -> InferenceRequest:
    """Raises InvalidRequest."""
    decoded = json_body.decode(body, _completion_decoder)
    return InferenceRequest(decoded.model, bool(decoded.stream), body)


def parse_embedding(body: bytes) -> InferenceRequest:
    """Raises InvalidRequest."""
    decoded = json_body.decode(body, _embedding_decoder)
    if not decoded.input:
        raise InvalidRequest("`input` is empty.", param="input")
    return InferenceRequest(decoded.model, stream=False, body=body)


def body_for(request: InferenceRequest, model_id: str) -> bytes:
    """Return the body with the model's own name in it, all other values byte for byte."""
    if model_id == request.model:
        return request.body
    fields = msgspec.json.decode(request.body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(model_id))
    return msgspec.json.encode(fields)


def error_body(error: CortexError) -> dict[str, Any]:
    """Return `{"message", "type", "param", "code", ...}`."""
    return {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
        **error.extra,
    }


def _encoded(error: CortexError) -> bytes:
    return msgspec.json.encode({"error": error_body(error)})


def _error_answer(error: CortexError, request_id: str) -> ErrorAnswer:
    return ErrorAnswer(error.status, tuple(error_headers(error)), _encoded(error))


def _error_frame(error: CortexError, request_id: str) -> bytes:
    """No `[DONE]` may follow it."""
    return b"data: " + _encoded(error) + b"\n\n"


DIALECT = Dialect("openai", (b"x-request-id",), _error_answer, _error_frame, progress_comment)


def _operation(
    name: str, path: str, parse_request: Callable[[bytes], InferenceRequest]
) -> Operation:
    return Operation(name, path, path, DIALECT, parse_request)


CHAT = _operation("chat", "/v1/chat/completions", parse_chat)
COMPLETIONS = _operation("completions", "/v1/completions", parse_completion)
EMBEDDINGS = _operation("embeddings", "/v1/embeddings", parse_embedding)
