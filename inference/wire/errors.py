"""Every error a client of the gateway can see.

    CortexError                     status  code                   whose fault, does a retry help
    ├── InvalidRequest              400     invalid_request        client; no
    ├── AnswerTooLarge              400     answer_too_large       client; no
    ├── PathNotFound                404     unknown_url            client; no
    ├── RequestNotFound             404     request_not_found      client; no
    ├── ModelNotFound               404     model_not_found        client; no
    ├── MethodNotAllowed            405     method_not_allowed     client; no
    ├── RequestCancelled            409     request_cancelled      client; no
    ├── RequestTooLarge             413     request_too_large      client; no
    ├── InternalError               500     internal_error         gateway; perhaps
    ├── UpstreamError               502     upstream_error         neuron; perhaps
    ├── NeuronAnswered              any     the neuron's own       as the neuron says
    └── Unavailable                 503     (with Retry-After)     nobody's or an operator's; yes
        ├── Saturated                       saturated
        ├── NeuronUnreachable               neuron_unreachable
        ├── ModelLoading                    model_loading
        ├── ModelLoadFailed                 model_load_failed
        └── NoFeasibleNeuron                no_feasible_neuron

Status, type and code are OpenAI's; another dialect translates them. It knows no HTTP library and no
model. What an operator's log says is not what a client reads:
texts from a neuron pass through `without_paths` on their way here.
"""

import math
import re
from collections.abc import Mapping

MIN_RETRY_SECONDS = 5
MAX_RETRY_SECONDS = 300

_PATH = re.compile(r"(?<![\w:/.])/(?:[^\s/'\"]+/)+[^\s'\"]*")


class CortexError(Exception):
    """The root: never raised itself."""

    status: int
    type: str
    code: str

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_seconds: int | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra or {}
        """What goes beside `code` for programs that want to know more."""


class InvalidRequest(CortexError):
    status, type, code = 400, "invalid_request_error", "invalid_request"


class AnswerTooLarge(CortexError):
    status, type, code = 400, "invalid_request_error", "answer_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The answer would be larger than {limit_bytes >> 20} MB. Ask for less in one request."
        )


class PathNotFound(CortexError):
    status, type, code = 404, "invalid_request_error", "unknown_url"


class ModelNotFound(CortexError):
    status, type, code = 404, "invalid_request_error", "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model {model[:200]!r} does not exist here.", param="model")


class RequestNotFound(CortexError):
    status, type, code = 404, "invalid_request_error", "request_not_found"

    def __init__(self) -> None:
        super().__init__("No such request of yours is running here.")


class RequestCancelled(CortexError):
    status, type, code = 409, "invalid_request_error", "request_cancelled"

    def __init__(self) -> None:
        super().__init__("The request was cancelled by its caller.")


class MethodNotAllowed(CortexError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here; use {allowed}.")
        self.allowed = allowed


class RequestTooLarge(CortexError):
    status, type, code = 413, "invalid_request_error", "request_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request is larger than {limit_bytes >> 20} MB.")


class InternalError(CortexError):
    status, type, code = 500, "api_error", "internal_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"Something went wrong in Cortex. Request id: {request_id}")


class UpstreamError(CortexError):
    status, type, code = 502, "api_error", "upstream_error"


class NeuronAnswered(CortexError):
    """A neuron's own error, given to the client as the neuron worded it."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        code: str,
        param: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_seconds=retry_after_seconds)
        self.status, self.type, self.code = status, type, code


class Unavailable(CortexError):
    """Cannot be served now. Every one says when to ask again."""

    status, type = 503, "api_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        bounded = min(MAX_RETRY_SECONDS, max(1, math.ceil(retry_after_seconds)))
        super().__init__(message, retry_after_seconds=bounded, extra=extra)


class Saturated(Unavailable):
    code = "saturated"


class NeuronUnreachable(Unavailable):
    code = "neuron_unreachable"


class ModelLoading(Unavailable):
    code = "model_loading"


class ModelLoadFailed(Unavailable):
    code = "model_load_failed"


class NoFeasibleNeuron(Unavailable):
    code = "no_feasible_neuron"


UNAVAILABLE = (Saturated, NeuronUnreachable, ModelLoading, ModelLoadFailed, NoFeasibleNeuron)


def error_headers(error: CortexError) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(error.retry_after_seconds).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allowed.encode()))
    if error.status == 409:  # the SDKs ask again after one, unless they are told not to
        headers.append((b"x-should-retry", b"false"))
    return headers


def without_paths(text: str) -> str:
    """Return a text without absolute paths of a host. URLs and `org/model` names stay."""
    return _PATH.sub("(path)", text)
