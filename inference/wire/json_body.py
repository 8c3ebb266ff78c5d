"""Checks that a request body is JSON as every dialect must receive it, before anything reads it.

Strict where a lax reader further on could be tricked: encoding, depth, numbers, escapes. It looks
at bytes only and builds no objects; what the fields mean is a dialect's business.
"""

import re
import zlib
from typing import TypeVar

import msgspec

from inference.wire.errors import InvalidRequest, RequestTooLarge

MAX_BODY_BYTES = 32 << 20
MAX_DEPTH = 64
MAX_OPENED = 1_000_000
"""Brackets and braces that may open, those in strings too: no model reads as many tokens, and each
takes time in which nobody else is answered."""
MAX_COMPLAINT_CHARACTERS = 500
"""Of what is wrong with a body: some of it is the client's own, as long as it likes."""

_Body = TypeVar("_Body")

_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_STRING_OR_BRACKET = re.compile(rb'"[^"]*+"|[\[\]{}]')
# In what has no escaped backslashes, so that each `\u` is an escape.
_SURROGATE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|([89a-fA-F]))"
)
_PLACE = re.compile(r"at `\$\.?([^`]*)`")
_FIELD = re.compile(r"missing required field `([^`]+)`")


def unpack(body: bytes, encoding: str) -> bytes:
    """Return the body without its content encoding.

    Raises InvalidRequest, and RequestTooLarge for what would unfold to more than MAX_BODY_BYTES.
    """
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip"):
        raise InvalidRequest(f"Content-Encoding {encoding[:50]!r} is not supported; use gzip.")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        unpacked = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise InvalidRequest("The body is not valid gzip.") from None
    if len(unpacked) > MAX_BODY_BYTES:
        raise RequestTooLarge(MAX_BODY_BYTES)
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest("The body is not one complete gzip stream.")
    return unpacked


def decode(body: bytes, decoder: "msgspec.json.Decoder[_Body]") -> _Body:
    """Return the body as the decoder's type. Raises InvalidRequest naming the parameter."""
    try:
        body.decode()
        decoded = decoder.decode(body)
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.") from None
    except RecursionError:
        raise InvalidRequest(_TOO_DEEP) from None
    except msgspec.ValidationError as error:
        raise _complaint(str(error)) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if _is_deeper_than(body, MAX_DEPTH):
        raise InvalidRequest(_TOO_DEEP)
    if _has_lone_surrogate(body):
        raise InvalidRequest("The body has half of a surrogate pair in a string.")
    return decoded


def decode_part(part: msgspec.Raw, decoder: "msgspec.json.Decoder[_Body]", place: str) -> _Body:
    """Return a part that `decode` left raw; `place` is where in the body it was.

    Raises InvalidRequest naming the parameter.
    """
    try:
        return decoder.decode(part)
    except msgspec.DecodeError as error:
        message = str(error).replace("`$", f"`$.{place}", 1)
        if "`$" not in message:
            message = f"{message} - at `$.{place}`"
        raise _complaint(message) from None


_TOO_DEEP = f"The body is nested more than {MAX_DEPTH} levels deep."


def _complaint(message: str) -> InvalidRequest:
    """Return msgspec's words as an error. The place stands at their end, a value before it."""
    what, separator, place = message.rpartition(" - at `")
    if not separator:
        what, place = message, ""
    return InvalidRequest(
        f"{what[:MAX_COMPLAINT_CHARACTERS]}{separator}{place}.", param=_param_of(message)
    )


def _param_of(message: str) -> str | None:
    place, field = _PLACE.search(message), _FIELD.search(message)
    names = [found[1] for found in (place, field) if found and found[1]]
    return ".".join(names) or None


def _is_deeper_than(body: bytes, limit: int) -> bool:
    """Count brackets outside of strings, in a body that is JSON.

    Each step holds the interpreter for a moment only, whatever a body consists of: other threads
    get their turn between two brackets.
    """
    num_opened = body.count(b"[") + body.count(b"{")
    if num_opened <= limit:
        return False
    if num_opened > MAX_OPENED:
        raise InvalidRequest(f"The body has more than {MAX_OPENED} brackets and braces that open.")
    # Escaped backslashes first: then one before a quote always belongs to the quote.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    depth = 0
    # Two quotes side by side are a string without brackets, or stand between two strings.
    marks = unescaped.translate(None, _NO_MARKS).replace(b'""', b"")
    for found in _STRING_OR_BRACKET.finditer(marks):
        mark = found[0]
        if mark in (b"[", b"{"):
            depth += 1
            if depth > limit:
                return True
        elif mark in (b"]", b"}"):
            depth -= 1
    return False


def _has_lone_surrogate(body: bytes) -> bool:
    if b"\\ud" not in body and b"\\uD" not in body:
        return False
    return any(found[1] for found in _SURROGATE.finditer(body.replace(b"\\\\", b"")))
