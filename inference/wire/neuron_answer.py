"""What a neuron says of its answers, as far as the gateway reads them: cost, end, refusal.

A neuron answers in OpenAI's shapes. What cannot be read, or cannot be true, says nothing. It knows
no HTTP and no fleet.
"""

from dataclasses import dataclass, replace

import msgspec

from inference.wire.errors import NeuronAnswered, UpstreamError, without_paths
from neuron_agent.protocol import ControlFrame, ErrorBody, ErrorCode, ErrorDetail, Usage

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no JSON of the right shape."""
MAX_MESSAGE_CHARACTERS = 2_000
"""Of an error: some of it may be the client's own words, as many as it likes."""
MAX_COUNT = 2**31 - 1
"""The most tokens that are believed, and that a record has room for."""


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


_answer_decoder = msgspec.json.Decoder(_Answer)
_control_decoder = msgspec.json.Decoder(ControlFrame)
_error_decoder = msgspec.json.Decoder(ErrorBody)


_WELL_ELSEWHERE = (ErrorCode.DEVICE_FAULT, ErrorCode.SATURATED)
_STATUS_IN_STREAM: dict[str, int] = {
    **dict.fromkeys(_WELL_ELSEWHERE, 503),
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a finished answer says of itself."""

    usage: Usage | None = None
    finish_reason: str = ""


def read_outcome(answer: bytes) -> Outcome:
    """Return usage and finish reason of a whole answer; of an unreadable one nothing."""
    try:
        decoded = _answer_decoder.decode(answer)
    except UNREADABLE:
        return Outcome()
    finish_reason = decoded.choices[0].finish_reason if decoded.choices else None
    return Outcome(_usage(decoded.usage), finish_reason or "")


def read_control(frame: bytes) -> ControlFrame:
    """Return a control frame; one that cannot be read says nothing."""
    try:
        control = _control_decoder.decode(frame)
    except UNREADABLE:
        return ControlFrame()
    is_credible = control.usage is _believable(control.usage)
    return control if is_credible else replace(control, usage=None)


def read_streamed_error(data: bytes) -> NeuronAnswered | None:
    """Return the error that an error frame tells, None if the frame is none."""
    if not data.startswith(b'{"error"'):
        return None
    try:
        return streamed_error(_error_decoder.decode(data).error)
    except UNREADABLE:
        unknown = ErrorDetail("The neuron ended its answer with an error.", "api_error", "error")
        return streamed_error(unknown)


def streamed_error(detail: ErrorDetail) -> NeuronAnswered:
    """Return it with the status that the neuron would have given it, had it known in time."""
    return NeuronAnswered(
        without_paths(detail.message),
        status=_STATUS_IN_STREAM.get(detail.code, 502),
        type=detail.type,
        code=detail.code,
        retry_after_seconds=1 if detail.code in _WELL_ELSEWHERE else None,
    )


def read_refusal(
    status: int, body: bytes, retry_after: str, model_id: str, shown_as: str
) -> NeuronAnswered | UpstreamError:
    """Return a neuron's error answer as the error the client gets.

    The model is named as the client named it. What is not in OpenAI's shape did not come from a
    neuron's own code and tells the client nothing, and 401 is about Cortex's token, not theirs.
    """
    try:
        detail = _error_decoder.decode(body).error
    except UNREADABLE:
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
