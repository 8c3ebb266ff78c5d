"""What an engine or a loader says no with. Drawn:

    LoadRefused      a load cannot work as asked: the caller's fault, a retry alone does not help
    RequestRefused   a request cannot be served as asked: the same

Everything else that is raised on a device thread is a fault, and `devices.faults` says of which
kind. No message here names a path of the host.
"""

from neuron_agent.protocol import ErrorCode


class LoadRefused(Exception):
    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        hint: str | None = None,
        needed_bytes: int | None = None,
        free_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class RequestRefused(Exception):
    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
