"""Refusals as Anthropic words them: `messages.0.content: what is wrong with it`.

It knows how msgspec words its errors, and no field of a request.
"""

import re
from typing import TypeVar

import msgspec

from inference.wire import json_body
from inference.wire.errors import InvalidRequest

_Body = TypeVar("_Body")

MAX_CHARACTERS = 500
"""Of what is wrong: some of it is the client's own, as long as it likes."""

_PLACE = re.compile(r" - at `\$\.?([^`]*)`\.?$")
_MISSING = re.compile(r"Object missing required field `([^`]+)`")


def decode(body: bytes, decoder: "msgspec.json.Decoder[_Body]") -> _Body:
    """Return the body as the decoder's type. Raises InvalidRequest that says where it is wrong."""
    try:
        return json_body.decode(body, decoder)
    except InvalidRequest as error:
        raise _reworded(error.message) from None


def invalid(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path}: {what}", param=path)


def _reworded(message: str) -> InvalidRequest:
    found = _PLACE.search(message)
    path = _dotted(found[1]) if found else ""
    what = (message[: found.start()] if found else message.removesuffix("."))[:MAX_CHARACTERS]
    if missing := _MISSING.match(what):
        path, what = f"{path}.{missing[1]}".lstrip("."), "Field required"
    return invalid(path, what) if path else InvalidRequest(message[:MAX_CHARACTERS])


def _dotted(path: str) -> str:
    return path.replace("[", ".").replace("]", "").lstrip(".")
