"""What is said of a failure in `response.failed`, where only a code tells what to do.

Clients act on the code alone, since the status was 200 long ago. Codex tries again after every one
it does not know, so a fault of the request must have a code that says a retry is useless.
"""

from inference.wire.errors import CortexError

SAYS_WHAT_TO_DO = frozenset({"context_length_exceeded", "insufficient_quota"})
"""Codes that clients know and OpenAI sends, though its published list lacks them."""


def failure_of(error: CortexError) -> dict[str, str]:
    """Return `{"code", "message"}`."""
    return {"code": _code(error), "message": _message(error)}


def _code(error: CortexError) -> str:
    if error.code in SAYS_WHAT_TO_DO:
        return error.code
    if error.status in (429, 503):
        return "rate_limit_exceeded"
    return "invalid_prompt" if 400 <= error.status < 500 else "server_error"


def _message(error: CortexError) -> str:
    """Codex finds the pause before its next try in these words; there is no header for it."""
    seconds = error.retry_after_seconds
    if seconds is None or _code(error) != "rate_limit_exceeded":
        return error.message
    return f"{error.message} Please try again in {seconds}s."
