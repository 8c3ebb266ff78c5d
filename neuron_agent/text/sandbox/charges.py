"""What a template's operations, calls and filters cost, charged before they are carried out.

Python offers many ways to make a huge value in one step, which no limit on steps would notice:
each is found here by its name. Values that hold themselves many times over are measured whole.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from neuron_agent.text.sandbox.budget import MAX_VALUES, TooMuch, size_of, take

MAX_NUMBER_BITS = 4096
MAX_INDENTATION = 64
WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(\*|\d{4})|:[^}]*(\{|\d{4})")
"""A format, of either kind, with a width of thousands or one that comes from outside."""


def limited(value: Any) -> Any:
    """Charge a list or mapping for all that is in it, and return it."""
    values, _ = size_of(value)
    take(steps=values)
    return value


def charge_text(value: Any) -> Any:
    """Charge a value for the text it becomes, and return it."""
    if isinstance(value, str):
        take(characters=len(value))
    elif isinstance(value, list | dict | tuple | Mapping | set | frozenset):
        values, characters = size_of(value)
        take(values, 4 * (values + characters))
    return value


def length(value: Any) -> int:
    return len(value) if _is_sized(value) else 1


def _is_sized(value: Any) -> bool:
    # What JSON has comes first: to ask for an abstract class takes ten times as long.
    return isinstance(value, str | list | dict | tuple | Sequence | Mapping | set)


def charge_operation(operator: str, left: Any, right: Any) -> None:
    """Raise TooMuch before an operation makes something that is too large."""
    match operator:
        case "**":
            take()
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() * abs(right))
        case "*" if isinstance(left, int) and isinstance(right, int):
            take()
            _check_bits(left.bit_length() + right.bit_length())
        case "*":
            unit, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int):
                _charge_repetition(unit, max(0, times))
        case "%" if isinstance(left, str):
            _charge_format(left, right)
        case "+" if isinstance(left, str) and isinstance(right, str):
            take(characters=len(left) + len(right))
        case _:
            take(steps=1 if isinstance(left, int | float) else length(left) + length(right))


def _check_bits(count: int) -> None:
    if count > MAX_NUMBER_BITS:
        raise TooMuch("it makes a number of thousands of digits")


def _charge_repetition(unit: Any, times: int) -> None:
    size = length(unit) * times
    if isinstance(unit, str):
        take(characters=size)
    elif size > MAX_VALUES:
        raise TooMuch(f"it makes a list of {size} parts")
    else:
        take(steps=1 + size)


def _charge_format(pattern: str, arguments: Any) -> None:
    if WIDE_FORMAT.search(pattern):
        raise TooMuch("it formats to a width of thousands of characters")
    take(characters=len(pattern))
    charge_text(arguments if isinstance(arguments, str | tuple | Mapping) else (arguments,))


def charge_call(function: Any, arguments: Sequence[Any]) -> None:
    """Charge a call, and a text's method for the text it makes."""
    method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    text = getattr(method, "__self__", None)
    if not isinstance(text, str):
        take(steps=1 + sum(map(length, arguments)) // 8)
        return
    take(steps=1 + len(text) // 100)
    match method.__name__, arguments:
        case "format" | "format_map", _:
            _charge_format(text, tuple(arguments))
        case "center" | "ljust" | "rjust" | "zfill", [int(width), *_]:
            take(characters=len(text) + max(0, width))
        case "expandtabs", [int(width), *_]:
            take(characters=len(text) + text.count("\t") * max(0, width))
        case "replace", [str(old), str(new), *_]:
            take(characters=len(text) + text.count(old) * len(new))
        case "join", [items, *_]:
            charge_text(items)
            take(characters=(length(items) if _is_sized(items) else MAX_VALUES) * len(text))
        case _:
            take(characters=len(text))


INSTANT_FILTERS = frozenset({"attr", "count", "d", "default", "first", "last", "length"})
"""They take no longer for much than for little, and templates ask them in every turn of a loop."""

TEXT_FILTERS = frozenset(
    {
        *("capitalize", "e", "escape", "float", "forceescape", "format", "indent", "int", "lower"),
        *("replace", "safe", "string", "striptags", "tojson", "trim", "truncate", "upper"),
        "urlencode",
    }
)
"""They take a text as a whole; to the others it is a list of characters or words."""


def metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that is charged for what it works on and what it makes."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja2 may pass itself before

    @wraps(function)  # with jinja2's marks of what it wants passed
    def filtered(*args: Any, **kwargs: Any) -> Any:
        value = args[first]
        if name == "join" and not _is_sized(value):
            value = list(value)  # how many there are decides how long the text is
            args = (*args[:first], value, *args[first + 1 :])
        if name in INSTANT_FILTERS:
            take()
            return function(*args, **kwargs)
        is_whole = isinstance(value, str) and name in TEXT_FILTERS
        take(steps=1 + length(value) // (100 if is_whole else 1))
        _charge_filter(name, value, [*args[first + 1 :], *kwargs.values()])
        made = function(*args, **kwargs)
        if isinstance(made, str):
            take(characters=len(made))
        elif isinstance(made, list):
            take(steps=len(made))
        return made

    return filtered


def _charge_filter(name: str, value: Any, arguments: Sequence[Any]) -> None:
    """Charge filters that make more text than they are given, before they make it."""
    match name, arguments:
        case "replace", [str(old), str(new), *_]:
            charge_text(value)
            take(characters=str(value).count(old) * len(new))
        case "indent" | "tojson", _:
            if any(_is_wide(each) for each in arguments):
                raise TooMuch(f"it asks {name} for more than {MAX_INDENTATION} characters")
            charge_text(value)
            take(characters=MAX_INDENTATION * value.count("\n") if isinstance(value, str) else 0)
        case "format", _:
            _charge_format(str(value), (*arguments,))
        case "batch" | "slice", [int(count), *_]:
            take(steps=max(0, count))
        case "join" | "string" | "pprint" | "list" | "sum", _:
            charge_text(value)
            take(characters=length(value) * sum(map(length, arguments)))


def _is_wide(argument: Any) -> bool:
    if isinstance(argument, str):
        return len(argument) > MAX_INDENTATION
    return isinstance(argument, int) and argument > MAX_INDENTATION
