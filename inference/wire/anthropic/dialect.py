"""What a client of Anthropic's API is told that is no answer: errors, and signs of life.

The errors are Cortex's own tree; here they get the status and the type that such a client knows.
It knows no HTTP and no request.
"""

import msgspec

from inference.wire.dialect import Dialect, ErrorAnswer, Progress
from inference.wire.errors import CortexError, error_headers
from inference.wire.sse import progress_comment

OVERLOADED_STATUS = 529
PING = b'event: ping\ndata: {"type": "ping"}\n\n'

_OVERLOADED_CODES = frozenset(
    {
        "saturated",
        "neuron_unreachable",
        "model_loading",
        "model_not_loaded",
        "no_feasible_neuron",
    }
)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED_STATUS: "overloaded_error",
}


def status_of(error: CortexError) -> int:
    return OVERLOADED_STATUS if error.code in _OVERLOADED_CODES else error.status


def type_of(error: CortexError) -> str:
    status = status_of(error)
    return _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def _encoded(error: CortexError, request_id: str) -> bytes:
    detail: dict[str, object] = {"type": type_of(error), "message": error.message}
    if "error_code" in error.extra:  # programs tell by it what to do; of the words they know none
        detail["details"] = error.extra
    return msgspec.json.encode({"type": "error", "error": detail, "request_id": request_id})


def _error_answer(error: CortexError, request_id: str) -> ErrorAnswer:
    headers = tuple(error_headers(error))
    return ErrorAnswer(status_of(error), headers, _encoded(error, request_id))


def _error_frame(error: CortexError, request_id: str) -> bytes:
    return b"event: error\ndata: " + _encoded(error, request_id) + b"\n\n"


def _keep_alive(progress: Progress) -> bytes:
    """The comment is for people who look; a ping is what such clients know as a sign of life."""
    return progress_comment(progress) + PING


DIALECT = Dialect(
    "anthropic", (b"request-id", b"x-request-id"), _error_answer, _error_frame, _keep_alive
)
