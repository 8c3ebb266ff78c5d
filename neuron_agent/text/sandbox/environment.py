"""The environment chat templates run in: jinja2's sandbox, on a budget.

A template is a program from the hub. jinja2 keeps it from the interpreter's inside; this keeps it
from taking the front process's time and memory. What templates may use is what transformers offers
them. It knows no conversations and no errors of ours.
"""

import json
from functools import lru_cache
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import loopcontrols
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from neuron_agent.text.sandbox.budget import format_now, take
from neuron_agent.text.sandbox.charges import (
    charge_call,
    charge_operation,
    charge_text,
    length,
    limited,
    metered,
)
from neuron_agent.text.sandbox.meters import GenerationTag, Meters

REMOVED_FILTERS = ("center", "urlize", "xmlattr", "filesizeformat", "random", "wordwrap")
"""They could make much of little, and no conversation needs them."""


@lru_cache(maxsize=64)
def compile_template(source: str) -> Template:
    """Return the program of a template. Raises TemplateError."""
    return Environment().from_string(source)


@lru_cache(maxsize=64)
def names_in(source: str) -> frozenset[str]:
    """Return the variables a template reads; none if it cannot be compiled."""
    try:
        names = list(Environment().parse(source).find_all(nodes.Name))
    except TemplateError:
        return frozenset()
    return frozenset(name.name for name in names if name.ctx == "load")


class Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox as transformers sets it up for chat templates, on a budget."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, GenerationTag],
            finalize=charge_text,
        )
        self.filters["tojson"] = _to_json
        self.filters = {
            name: metered(name, function)
            for name, function in self.filters.items()
            if name not in REMOVED_FILTERS
        }
        del self.globals["lipsum"]
        self.globals["dict"] = _make_dict
        self.globals["namespace"] = TemplateNamespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = format_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        metered = Meters().visit(template)
        metered.set_environment(self)
        assert isinstance(metered, nodes.Template)
        return metered

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(__obj, "__self__", None) is __self:
            return __obj(*args)  # a meter: a template cannot name the environment
        charge_call(__obj, args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        charge_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Numbers and bytes have methods that take any amount of memory, and no use here."""
        if type(obj) is str:  # most are: what jinja2 would look for in it is not there
            return not attr.startswith("_") and attr != "translate"
        if isinstance(obj, int | float | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value)

    # What the meters in a template call.

    def pass_turn(self, num_characters: int) -> None:
        take(characters=num_characters)

    def pass_items(self, items: Any) -> Any:
        take(steps=length(items))
        return items

    def join_texts(self, *parts: Any) -> str:
        return "".join([str(charge_text(part)) for part in parts])

    def limit_value(self, value: Any) -> Any:
        return limited(value)


class TemplateNamespace(Namespace):
    """jinja2's namespace without a way to its inside, and with a plain representation."""

    __repr__ = object.__repr__

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No parameter is named, since a template may call its first attribute anything.
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> Any:
    return limited(dict(*args, **kwargs))


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(charge_text(message)))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as models were trained on it: jinja2's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
