"""What can go wrong in a neuron's front process, as the caller will see it.

    NeuronError
    |-- BadRequest       400  the caller's fault; the same request fails again
    |-- Unauthorized     401  the caller's fault
    |-- NotFound         404  the caller's fault, or a model that is not here
    |-- MethodNotAllowed 405  the caller's fault
    |-- Conflict         409  the request and the state of the neuron contradict each other
    |-- TooLarge         413  the caller's fault
    |-- Unprocessable    422  understood, but it cannot work as asked; `hint` says what would
    |-- RateLimited      429  the caller has its share; a retry after `retry_after_seconds` may help
    |-- RequestFailed    500  ours: this one request failed, others did not notice
    `-- Unavailable      503  nobody's fault; a retry after `retry_after_seconds` may help

No message carries a prompt, a key or a path of this host. This module knows neither HTTP nor
asyncio: the server turns an error into an answer.
"""

from typing import ClassVar

from neuron_agent.protocol import ErrorCode, ErrorDetail


class NeuronError(Exception):
    """Base of the tree: an HTTP status, a machine-readable code and a sentence for people."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "api_error"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        param: str | None = None,
        hint: str | None = None,
        needed_mb: int | None = None,
        free_mb: int | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = str(code)
        self.param = param
        self.hint = hint
        self.needed_mb = needed_mb
        self.free_mb = free_mb
        self.retry_after_seconds = retry_after_seconds

    def detail(self) -> ErrorDetail:
        """Return the body of the answer."""
        return ErrorDetail(
            message=self.message,
            type=self.error_type,
            code=self.code,
            param=self.param,
            hint=self.hint,
            needed_mb=self.needed_mb,
            free_mb=self.free_mb,
        )


class BadRequest(NeuronError):
    status = 400
    error_type = "invalid_request_error"

    def __init__(
        self, message: str, *, param: str | None = None, code: str = ErrorCode.INVALID_REQUEST
    ) -> None:
        super().__init__(message, code=code, param=param)


class Unauthorized(NeuronError):
    status = 401
    error_type = "invalid_request_error"


class NotFound(NeuronError):
    status = 404
    error_type = "invalid_request_error"


class MethodNotAllowed(NeuronError):
    status = 405
    error_type = "invalid_request_error"


class Conflict(NeuronError):
    status = 409
    error_type = "invalid_request_error"


class TooLarge(NeuronError):
    status = 413
    error_type = "invalid_request_error"


class Unprocessable(NeuronError):
    status = 422
    error_type = "invalid_request_error"


class RateLimited(NeuronError):
    status = 429
    error_type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        code = ErrorCode.RATE_LIMIT_EXCEEDED
        super().__init__(message, code=code, retry_after_seconds=retry_after_seconds)


class RequestFailed(NeuronError):
    status = 500


class Unavailable(NeuronError):
    status = 503

    def __init__(self, message: str, *, code: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message, code=code, retry_after_seconds=retry_after_seconds)
