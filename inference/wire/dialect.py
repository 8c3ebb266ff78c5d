"""What the gateway needs of a dialect and of each thing one can ask in it: the contracts.

A dialect says what is no answer: errors and signs of life. An operation, one for each path, reads
requests; an answer shape writes a neuron's answer as that path's clients expect it. All of them are
sans-IO, and know neither models nor neurons.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from inference.wire.errors import CortexError
from inference.wire.events import ChatEvent

Header = tuple[bytes, bytes]
Progress = Mapping[str, object]
"""Where a request that waits is: stage, and what is known of percent, position, eta_seconds."""


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as a whole answer; the headers have its content type and Retry-After."""

    status: int
    headers: tuple[Header, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a family of clients is told what is no answer."""

    name: str
    request_id_headers: tuple[bytes, ...]
    error_answer: Callable[[CortexError, str], ErrorAnswer]
    """Of an error and the request's id."""
    error_frame: Callable[[CortexError, str], bytes]
    """The same as the last frame of a stream that has begun: it never looks like a normal end."""
    keep_alive: Callable[[Progress], bytes]
    """What a silent stream says between two frames: every client ignores it."""


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """What an answer says of itself before the model has said anything."""

    unique: str
    """Hexadecimal digits for the ids of the answer and its parts."""
    created: int
    """Unix seconds."""


class StreamEncoder(Protocol):
    """Writes a stream: fed events, it gives frames. Nothing is held back for the next event."""

    def open(self) -> bytes:
        """Return the frames that can be sent while nothing is known; at most once, before feed."""

    def feed(self, event: ChatEvent) -> bytes: ...

    def idle(self) -> bytes:
        """Return a sign of life, due about once a minute, for clients that overlook comments."""

    def fail(self, error: CortexError, request_id: str) -> bytes:
        """Return the frames that end a stream which broke, whatever it has said before."""


class Collector(Protocol):
    """Writes an answer that comes at once: fed all events up to Finished, it gives the body."""

    def feed(self, event: ChatEvent) -> None: ...

    def body(self) -> bytes: ...


class AnswerShape(Protocol):
    """How an answer looks. Knows what of the request the answer repeats."""

    def stream(self, head: AnswerHead) -> StreamEncoder: ...

    def whole(self, head: AnswerHead) -> Collector: ...


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request that makes sense, as far as the gateway judges that."""

    model: str
    """As the client named it: a model or an alias."""
    stream: bool
    """The client wants the answer as it comes."""
    body: bytes
    """What a neuron is asked, with `model` in it. With a shape it asks for a chat, streamed."""
    shape: AnswerShape | None = None
    """None: the neuron's answer is the client's, byte for byte."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked, at one path."""

    name: str
    """As records and metrics have it."""
    path: str
    neuron_path: str
    dialect: Dialect
    parse_request: Callable[[bytes], InferenceRequest]
    """Raises InvalidRequest, RequestTooLarge and what else the request is to blame for."""
