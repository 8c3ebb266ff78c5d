"""Server-sent events as bytes: data frames, comments, the end mark. Sans-IO, no state."""

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def data_frame(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def named_frame(event: str, payload: object) -> bytes:
    return b"event: " + event.encode() + b"\n" + data_frame(payload)


def comment(prefix: bytes, payload: object) -> bytes:
    """Return a comment line that carries JSON: every client ignores it, Cortex reads it."""
    return prefix + msgspec.json.encode(payload) + b"\n\n"
