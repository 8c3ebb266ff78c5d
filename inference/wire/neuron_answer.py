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
MAX_NAME_CHARACTERS = 200
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
    error: ErrorDetail | None = None


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
    error: NeuronAnswered | None = None


def read_outcome(answer: bytes) -> Outcome | None:
    """Return usage and finish reason of a whole answer, nothing of an odd one; None if no JSON."""
    try:
        decoded = _answer_decoder.decode(answer)
    except msgspec.ValidationError:
        return Outcome()
    except UNREADABLE:
        return None
    if decoded.error is not None:
        return Outcome(error=streamed_error(decoded.error))
    finish_reason = decoded.choices[0].finish_reason if decoded.choices else None
    return Outcome(_usage(decoded.usage), finish_reason or "")


def read_control(frame: bytes) -> ControlFrame:
    """Return a control frame; one that cannot be read says nothing."""
    try:
        control = _control_decoder.decode(frame)
    except UNREADABLE:
        return ControlFrame()
    if control.usage is not _believable(control.usage):
        control = replace(control, usage=None)
    progress = control.progress
    if progress is not None and not _are_counts(progress.done, progress.total):
        control = replace(control, progress=None)
    return control


def read_streamed_error(data: bytes) -> NeuronAnswered:
    """Return the error that an error frame tells."""
    try:
        return streamed_error(_error_decoder.decode(data).error)
    except UNREADABLE:
        unknown = ErrorDetail("The neuron ended its answer with an error.", "api_error", "error")
        return streamed_error(unknown)


def streamed_error(detail: ErrorDetail) -> NeuronAnswered:
    """Return it with the status that the neuron would have given it, had it known in time."""
    return NeuronAnswered(
        without_paths(detail.message[:MAX_MESSAGE_CHARACTERS]),
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
    message = without_paths(detail.message[:MAX_MESSAGE_CHARACTERS])
    return NeuronAnswered(
        message.replace(model_id, shown_as[:MAX_NAME_CHARACTERS]),
        status=status,
        type=detail.type,
        code=detail.code,
        param=detail.param,
        retry_after_seconds=_retry_seconds(status, retry_after),
    )


def _retry_seconds(status: int, header: str) -> int | None:
    if header.isascii() and header.isdigit():
        return min(int(header[:9]), 300)
    return 1 if status in (429, 503) else None


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
    are_counts = _are_counts(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    return usage if are_counts else None


def _are_counts(*numbers: int) -> bool:
    return all(0 <= number <= MAX_COUNT for number in numbers)
