"""JSON bodies from callers: decoded strictly, with errors that name the parameter.

Refused with a sentence and never a traceback: broken JSON, invalid UTF-8, lone surrogates, NaN,
deep nesting, wrong types, numbers out of range. It knows the shape of no particular request.
"""

import re
from typing import Any, TypeVar

import msgspec

from neuron_agent.errors import BadRequest

MAX_DEPTH = 64

T = TypeVar("T")


class Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of request bodies: unknown fields are ignored; null, where allowed, is absence."""


def parse_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises BadRequest."""
    try:
        raw = msgspec.json.decode(data)
    except RecursionError:
        raise BadRequest("the body is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not valid UTF-8") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {_without_place(str(error))}") from error
    if not isinstance(raw, dict):
        raise BadRequest("the body must be a JSON object")
    if _is_deeper(raw, MAX_DEPTH):
        raise BadRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
    return raw


def decode(raw: dict[str, Any], shape: type[T]) -> T:
    """Return the object as `shape`. Raises BadRequest that names the parameter."""
    try:
        return msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        message = str(error)
        param = _param_of(message)
        raise BadRequest(
            f"{param or 'body'}: {_without_place(message)}", param=param or None
        ) from error


def check_range(param: str, value: float | None, lowest: float, highest: float) -> None:
    """Raise BadRequest unless the value is absent or within the limits."""
    if value is not None and not lowest <= value <= highest:
        raise BadRequest(f"{param} must be from {lowest} to {highest}", param=param)


def _is_deeper(value: object, levels: int) -> bool:
    """Whether containers nest deeper than `levels`; it walks level by level, never recursing."""
    layer = [value]
    for _ in range(levels):
        layer = [child for item in layer for child in _children(item)]
        if not layer:
            return False
    return any(isinstance(item, dict | list) for item in layer)


def _children(value: object) -> list[object]:
    match value:
        case dict():
            return [child for child in value.values() if isinstance(child, dict | list)]
        case list():
            return [child for child in value if isinstance(child, dict | list)]
        case _:
            return []


def _param_of(message: str) -> str:
    """Return the parameter a validation message is about: its path, or the missing field's name."""
    path = re.search(r"`\$\.?([^`]*)`", message)
    missing = re.search(r"missing required field `(\w+)`", message)
    parts = [path.group(1) if path else "", missing.group(1) if missing else ""]
    return ".".join(part for part in parts if part)


def _without_place(message: str) -> str:
    return message.split(" - at ")[0]


def unsupported(param: str) -> BadRequest:
    """Return the refusal of what is understood and not done."""
    return BadRequest(
        f"{param} is not supported by this neuron", param=param, code="unsupported_parameter"
    )
