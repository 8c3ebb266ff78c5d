"""Reasoning as `encrypted_content` carries it through a client and back.

Clients keep no state here, so what a model thought comes back with the next request or is lost.
It is not encrypted: it is text the client was shown anyway, in a form nobody is tempted to edit.
What another service wrote is not ours to read.
"""

import base64
import binascii

_MARK = b"cortex-1:"  # nine bytes: in base64 it is the same twelve characters in front of any text
_PREFIX = base64.b64encode(_MARK).decode()


def pack(text: str) -> str:
    return base64.b64encode(_MARK + text.encode()).decode()


def unpack(content: str) -> str | None:
    """Return the text that `pack` was given, None for what it did not write."""
    if not content.startswith(_PREFIX):
        return None
    try:
        return base64.b64decode(content, validate=True)[len(_MARK) :].decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
