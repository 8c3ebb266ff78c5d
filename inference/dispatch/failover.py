"""What follows when a neuron does not answer a request: go elsewhere, wait for a load, or say so.

Decided from the kind of failure alone, and only before the first byte has reached the client:
after that a second attempt could not be hidden.
"""

from enum import Enum, auto
from typing import assert_never

from inference.wire.errors import CortexError
from neuron_agent.protocol import ErrorCode

GONE_SECONDS = 1.0
"""How long a request leaves a placement alone whose neuron said that the model is not there."""


class TransportFailure(Enum):
    """How a neuron failed to answer at all."""

    REFUSED = auto()
    CONNECT_TIMEOUT = auto()
    BROKEN = auto()
    """The connection ended, or what came was no HTTP."""
    SILENT = auto()
    """No byte for too long."""


class NextStep(Enum):
    TELL_CLIENT = auto()
    TRY_ANOTHER = auto()
    """Another ready placement, if there is one; else tell the client."""
    WAIT_FOR_LOAD = auto()
    """The model is not there: it has just gone, or has not come yet."""


_NOT_THERE = frozenset(
    {ErrorCode.MODEL_NOT_FOUND, ErrorCode.MODEL_NOT_LOADED, ErrorCode.MODEL_LOADING}
)


def after_transport_failure(failure: TransportFailure) -> NextStep:
    """A silent neuron is still at work on the request, for all we know: it is not given twice."""
    match failure:
        case TransportFailure.REFUSED | TransportFailure.CONNECT_TIMEOUT | TransportFailure.BROKEN:
            return NextStep.TRY_ANOTHER
        case TransportFailure.SILENT:
            return NextStep.TELL_CLIENT
        case _:
            assert_never(failure)


def after_refusal(status: int, code: str) -> NextStep:
    if status in (404, 503) and code in _NOT_THERE:
        return NextStep.WAIT_FOR_LOAD
    return NextStep.TRY_ANOTHER if status == 503 else NextStep.TELL_CLIENT


class Attempts:
    """Which placements one request has tried in vain, and for how long that counts."""

    def __init__(self) -> None:
        self.error: CortexError | None = None
        """What the client is told if no other placement is left."""
        self._failed: set[int] = set()
        self._gone_until: dict[int, float] = {}

    def excluded(self, now: float) -> set[int]:
        return self._failed | {id for id, until in self._gone_until.items() if now < until}

    def note(self, placement_id: int, step: NextStep, error: CortexError, now: float) -> None:
        """Raises the error if nothing else is to be tried."""
        match step:
            case NextStep.TELL_CLIENT:
                raise error
            case NextStep.TRY_ANOTHER:
                self._failed.add(placement_id)
                self.error = error
            case NextStep.WAIT_FOR_LOAD:
                self._gone_until[placement_id] = now + GONE_SECONDS
            case _:
                assert_never(step)
