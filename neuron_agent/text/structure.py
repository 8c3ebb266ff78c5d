"""What an output must look like, as grammars for llguidance: JSON, a schema, forced tool calls.

The shapes a request can ask for, and how large its schemas may be. What a grammar consists of and
how calls are written it leaves to others; masks are made where the tokens are chosen.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neuron_agent.text.forced_calls import call_expression
from neuron_agent.text.grammar import Grammar, InvalidStructure, Schema
from neuron_agent.text.output_format import OutputFormat

__all__ = [
    "InvalidStructure",
    "forced_call_grammar",
    "json_object_grammar",
    "json_schema_grammar",
]

MAX_SCHEMA_BYTES = 64 * 1024
MAX_TOOLS_BYTES = 4 * MAX_SCHEMA_BYTES
MAX_SCHEMA_DEPTH = 64
MAX_REFERENCED_DEPTH = 1000
"""Levels of all that references name, one below the other. llguidance follows references by
recursion, and at some 2,500 levels the stack of a thread ends, and the process with it."""


def json_object_grammar(
    output_format: OutputFormat, starts_reasoning: bool, *, may_reason: bool = True
) -> str:
    """Return the grammar of any JSON object."""
    return json_schema_grammar(
        {"type": "object"}, output_format, starts_reasoning, may_reason=may_reason
    )


def json_schema_grammar(
    schema: Schema,
    output_format: OutputFormat,
    starts_reasoning: bool,
    *,
    is_strict: bool = True,
    may_reason: bool = True,
    tools: Sequence[Mapping[str, Any]] = (),
    parallel: bool = True,
) -> str:
    """Return the grammar of JSON under a schema, or of calls of tools where there are any.

    Where it is not strict, keywords and formats that cannot be enforced are ignored; strict, they
    are refused. Raises InvalidStructure.
    """
    check_size(schema, MAX_SCHEMA_BYTES, "the schema")
    grammar = Grammar(output_format)
    answer = grammar.json(schema, is_strict=is_strict)
    if tools and output_format.tools is not None:
        functions = [tool["function"] for tool in tools]
        _check_functions(functions)
        answer = f"({answer} | {call_expression(grammar, functions, parallel)})"
    return grammar.complete(answer, starts_reasoning, may_reason)


def forced_call_grammar(
    tools: Sequence[Mapping[str, Any]],
    name: str | None,
    output_format: OutputFormat,
    starts_reasoning: bool,
    parallel: bool,
    *,
    may_reason: bool = True,
) -> str:
    """Return the grammar of one or, if parallel, more calls of these tools, or of the named one.

    Raises InvalidStructure, also where the model's way to call tools is not known.
    """
    functions = [tool["function"] for tool in tools]
    chosen = [each for each in functions if name is None or each["name"] == name]
    if not chosen:
        raise InvalidStructure(f"there is no tool named {name!r}" if name else "there are no tools")
    _check_functions(chosen)
    grammar = Grammar(output_format)
    return grammar.complete(
        call_expression(grammar, chosen, parallel), starts_reasoning, may_reason
    )


def _check_functions(functions: Sequence[Mapping[str, Any]]) -> None:
    """Raises InvalidStructure."""
    for function in functions:
        where = f"the parameters of {function['name']!r}"
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise InvalidStructure(f"{where} are no schema")
        check_size(function.get("parameters"), MAX_SCHEMA_BYTES, where)
    check_size(functions, MAX_TOOLS_BYTES, "the tools")


def check_size(value: Any, max_bytes: int, what: str) -> None:
    """Raise InvalidStructure if a schema is larger or more deeply nested than is compiled."""
    depth = max(_depths(value))
    if depth > MAX_SCHEMA_DEPTH:
        raise InvalidStructure(
            f"{what} is nested {depth} deep; at most {MAX_SCHEMA_DEPTH} are taken"
        )
    if _referenced_depth(value) > MAX_REFERENCED_DEPTH:
        raise InvalidStructure(f"{what} refers to too many definitions")
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    num_bytes = len(text.encode(errors="surrogatepass"))
    if num_bytes > max_bytes:
        raise InvalidStructure(f"{what} has {num_bytes} bytes; at most {max_bytes} are taken")


def _referenced_depth(schema: Any) -> int:
    """Return the most levels that following references can lead through: each target once."""
    pointers = {
        part["$ref"]
        for part, _ in _parts(schema)
        if isinstance(part, Mapping) and isinstance(part.get("$ref"), str)
    }
    return sum(max(_depths(_target(schema, pointer))) for pointer in pointers)


def _target(schema: Any, pointer: str) -> Any:
    """Return what a JSON pointer such as `#/$defs/name` means; None if that is nothing."""
    current = schema
    for name in pointer.split("/")[1:]:
        if not isinstance(current, Mapping):
            return None
        current = current.get(name.replace("~1", "/").replace("~0", "~"))
    return current


def _depths(value: Any) -> Iterator[int]:
    return (depth for _, depth in _parts(value))


def _parts(value: Any) -> Iterator[tuple[Any, int]]:
    """Yield everything in a value and its depth; not by recursion, since it may be deep."""
    waiting = [(value, 1)]
    while waiting:
        current, depth = waiting.pop()
        yield current, depth
        if isinstance(current, Mapping):
            waiting.extend((each, depth + 1) for each in current.values())
        elif isinstance(current, list):
            waiting.extend((each, depth + 1) for each in current)
