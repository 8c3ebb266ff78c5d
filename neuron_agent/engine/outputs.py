"""What a step's outcome looks like on its way to the caller.

Pure: requests and results in, messages out. It knows no tensor and changes nothing.
"""

from neuron_agent.devices.channel import Output, TokenLogprob
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.request import FinishReason, Request


def prefill_output(request: Request) -> Output:
    """Say how far a prompt is."""
    return Output(request.request_id, [], prefill_done=request.num_computed)


def end_output(
    request: Request,
    finish: FinishReason | None,
    code: ErrorCode | None = None,
    message: str | None = None,
) -> Output:
    """Say that a request is over, without a token."""
    return Output(
        request.request_id,
        [],
        finish=finish,
        error_code=code,
        error=message,
        num_generated=len(request.generated_ids),
    )


def embedding_output(request: Request, embedding: list[float] | None, now: float) -> Output:
    """Say what an embedding request came to, at its end."""
    return Output(
        request.request_id,
        [],
        finish=request.finish,
        prefill_done=len(request.prompt_ids),
        cached_tokens=request.num_cached,
        queue_ms=_ms(request.submitted_at, request.admitted_at),
        prefill_ms=_ms(request.admitted_at, now),
        num_generated=0,
        embedding=embedding,
    )


def token_output(
    request: Request,
    finish: FinishReason | None,
    token_id: int | None,
    logprob: TokenLogprob | None,
) -> Output:
    """Say which token came; None is a stop token, which stays unsaid."""
    num_generated = len(request.generated_ids)
    is_first = num_generated == 1
    token_ids = [] if token_id is None else [token_id]
    return Output(
        request.request_id,
        token_ids,
        finish=finish,
        prefill_done=len(request.prompt_ids) if is_first else None,
        cached_tokens=request.num_cached if is_first else None,
        queue_ms=_ms(request.submitted_at, request.admitted_at) if is_first else None,
        prefill_ms=_ms(request.admitted_at, request.first_token_at) if is_first else None,
        num_generated=num_generated if finish else None,
        logprobs=[logprob] * len(token_ids) if logprob else None,
    )


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else (end - start) * 1000
