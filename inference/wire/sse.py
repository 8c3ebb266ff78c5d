"""Server-sent events as bytes: takes a neuron's control frames out of a stream, makes comments.

Sans-IO. It knows where a frame ends and how a control frame begins, not what either says. All
that is no control frame comes out byte for byte, however the stream was cut on its way here.
"""

from dataclasses import dataclass

import msgspec

from neuron_agent.protocol import CONTROL_FRAME_PREFIX

MAX_CONTROL_FRAME_BYTES = 64 << 10
MAX_FRAME_BYTES = 16 << 20

BORDER = b"\n\n"
ERROR_FRAME = b'data: {"error"'
"""How a neuron's error begins. In a string of JSON the quotes would be escaped."""
_START = BORDER + CONTROL_FRAME_PREFIX


class BadStream(ValueError):
    """A frame without an end, or one that cannot be read: not what a neuron sends."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a chunk of a neuron's stream amounts to."""

    data: bytes
    """For the client."""
    controls: tuple[bytes, ...] = ()
    """The JSON of each control frame that ended in this chunk."""


class ControlFrameFilter:
    """Splits a stream into what the client gets and the control frames.

    State is one value: the longest end of what was fed that may be the start of a border and a
    control frame. Its first two bytes, the border, were passed on already.
    """

    def __init__(self) -> None:
        self._pending = BORDER

    def feed(self, chunk: bytes) -> Piece:
        """Raises BadStream."""
        if self._pending == BORDER and chunk.endswith(BORDER) and CONTROL_FRAME_PREFIX not in chunk:
            return Piece(chunk)
        return self._feed(self._pending + chunk, min(len(self._pending), len(BORDER)))

    def finish(self) -> bytes:
        """Return what was held back: a stream that breaks off inside a control frame loses it."""
        held = self._pending[len(BORDER) :]
        self._pending = BORDER
        return b"" if held.startswith(CONTROL_FRAME_PREFIX) else held

    def _feed(self, buffer: bytes, passed: int) -> Piece:
        data: list[bytes] = []
        controls: list[bytes] = []
        searched = 0
        while (border := buffer.find(_START, searched)) >= 0:
            start = border + len(BORDER)
            data.append(buffer[passed:start])
            end = buffer.find(BORDER, start)
            if end < 0:
                self._hold(buffer[border:])
                return Piece(b"".join(data), tuple(controls))
            controls.append(buffer[start + len(CONTROL_FRAME_PREFIX) : end])
            passed, searched = end + len(BORDER), end
        self._pending = _end_that_may_start(buffer[searched:])
        held = max(0, len(self._pending) - len(BORDER))
        data.append(buffer[passed : len(buffer) - held])
        return Piece(b"".join(data), tuple(controls))

    def _hold(self, frame: bytes) -> None:
        if len(frame) > MAX_CONTROL_FRAME_BYTES:
            raise BadStream("a control frame does not end")
        self._pending = frame


class WholeFrames:
    """Passes on what ends with a border, so that between two pieces there is always one."""

    def __init__(self) -> None:
        self._rest = bytearray()
        """The beginning of a frame: there is no border in it."""

    def feed(self, data: bytes) -> bytes:
        """Return the frames that are complete now. Raises BadStream for one without an end."""
        if not self._rest and data.endswith(BORDER):
            return data
        # What was searched before is not searched again, however small the pieces are.
        searched = max(0, len(self._rest) - 1)
        self._rest += data
        border = self._rest.rfind(BORDER, searched)
        end = border + len(BORDER) if border >= 0 else 0
        whole = bytes(self._rest[:end])
        del self._rest[:end]
        if len(self._rest) > MAX_FRAME_BYTES:
            raise BadStream("a frame does not end")
        return whole


def comment(name: str, facts: object) -> bytes:
    """Return an SSE comment with JSON in it: every client ignores it."""
    return b": " + name.encode() + b" " + msgspec.json.encode(facts) + BORDER


def progress_comment(progress: object) -> bytes:
    """Return what a silent stream says of where its request is."""
    return comment("cortex-progress", progress)


def is_only_comments(piece: bytes) -> bool:
    """Whether a piece that begins at a frame's border is comments and nothing of a data frame."""
    return piece.startswith(b":") and piece.endswith(BORDER) and b"\ndata:" not in piece


def is_end(piece: bytes) -> bool:
    """Whether a stream is complete with this piece."""
    return piece.endswith(b"data: [DONE]\n\n")


def first_data(piece: bytes) -> bytes:
    """Return what the first line of a piece says, which is a `data:` line."""
    return piece[len(b"data: ") :].partition(b"\n")[0]


def _end_that_may_start(buffer: bytes) -> bytes:
    """Return the longest end of `buffer` that a control frame with its border may begin with."""
    if buffer.endswith(BORDER):  # most pieces are whole frames
        return BORDER
    for length in range(min(len(_START) - 1, len(buffer)), 0, -1):
        if buffer.endswith(_START[:length]):
            return _START[:length]
    return b""
