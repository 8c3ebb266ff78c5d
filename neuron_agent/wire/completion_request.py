"""An OpenAI text completion request: bytes in, CompletionRequest out, or a clear refusal.

Prompts are texts or token ids, one or several; each is completed as often as asked. It knows no
tokenizer and no vocabulary.
"""

from typing import Any

import msgspec

from neuron_agent.errors import BadRequest
from neuron_agent.wire.chat_request import StreamOptions
from neuron_agent.wire.json_body import Body, check_range, decode, parse_object, unsupported
from neuron_agent.wire.sampling_fields import (
    MAX_LOGPROBS,
    MAX_TOKEN_ID,
    SamplingBody,
    SamplingFields,
    check_sampling,
)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for text completions alone."""
MAX_COMPLETIONS = 128

Prompt = str | tuple[int, ...]


class CompletionBody(Body, frozen=True):
    """The fields that only text completions have, with the types they must have."""

    model: str
    prompt: str | list[Any]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class CompletionRequest(msgspec.Struct, frozen=True):
    """A request that makes sense; it has `num_choices` completions of each prompt, in order."""

    model: str
    prompts: tuple[Prompt, ...]
    is_streaming: bool
    includes_usage: bool
    sampling: SamplingFields
    num_logprobs: int | None = None


def parse_completion_request(data: bytes) -> CompletionRequest:
    """Return the request in a body. Raises BadRequest."""
    raw = parse_object(data)
    body = decode(raw, CompletionBody)
    if body.echo:
        raise unsupported("echo")
    if body.suffix:
        raise unsupported("suffix")
    sampling = check_sampling(decode({"max_tokens": DEFAULT_MAX_TOKENS, **raw}, SamplingBody))
    check_range("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    if body.best_of not in (None, sampling.num_choices):
        raise unsupported("best_of")
    prompts = parse_prompts(body.prompt, "prompt")
    if len(prompts) * sampling.num_choices > MAX_COMPLETIONS:
        raise BadRequest(
            f"at most {MAX_COMPLETIONS} completions are made at once, n for each prompt",
            param="prompt",
        )
    options = body.stream_options
    return CompletionRequest(
        model=body.model,
        prompts=prompts,
        is_streaming=bool(body.stream),
        includes_usage=bool(options and options.include_usage),
        sampling=sampling,
        num_logprobs=body.logprobs,
    )


def parse_prompts(given: str | list[Any], param: str) -> tuple[Prompt, ...]:
    """Return one or more prompts: a text, token ids, or a list of either. Raises BadRequest."""
    if isinstance(given, str):
        return (given,)
    if not given:
        raise BadRequest(f"{param} is empty", param=param)
    if all(type(item) is int for item in given):
        return (_token_ids(given, param),)
    return tuple(_prompt(item, f"{param}[{index}]") for index, item in enumerate(given))


def _prompt(given: Any, param: str) -> Prompt:
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{param} must be a text or a list of token ids", param=param)
    return _token_ids(given, param)


def _token_ids(given: list[Any], param: str) -> tuple[int, ...]:
    if not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in given):
        raise BadRequest(f"{param} has something that is not a token id", param=param)
    return tuple(given)
