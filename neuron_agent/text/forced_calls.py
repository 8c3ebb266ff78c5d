"""Forced tool calls as parts of a grammar, in each family's own markup: the parsers read them.

It knows how calls are written, and nothing of how large a schema may be or what comes before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from neuron_agent.text.families import glm, qwen_xml
from neuron_agent.text.families.hermes import CLOSING, OPENING
from neuron_agent.text.families.mistral import ARGUMENTS, CALLS
from neuron_agent.text.grammar import Grammar, InvalidStructure, Schema, literal
from neuron_agent.text.output_format import ToolFamily


def call_expression(
    grammar: Grammar, functions: Sequence[Mapping[str, Any]], parallel: bool
) -> str:
    """Return one or, if parallel, more calls of these functions. Raises InvalidStructure."""
    match grammar.format.tools:
        case ToolFamily.HERMES:
            call = grammar.json(_call_schema(functions, "arguments"))
            opening, closing = grammar.mark(OPENING), grammar.mark(CLOSING)
            return _repeated(grammar, rf'{opening} "\n" {call} "\n" {closing}', r'"\n"', parallel)
        case ToolFamily.QWEN_XML:
            return _xml_calls(grammar, functions, parallel)
        case ToolFamily.LLAMA:
            call = grammar.json(_call_schema(functions, "parameters"))
            return _repeated(grammar, call, '"; "', parallel)
        case ToolFamily.MISTRAL:
            return _mistral_calls(grammar, functions, parallel)
        case ToolFamily.GLM:
            return _glm_calls(grammar, functions, parallel)
        case None:
            raise InvalidStructure("how this model calls tools is not known: no call can be forced")


def _repeated(grammar: Grammar, call: str, separator: str, parallel: bool) -> str:
    if not parallel:
        return call
    name = grammar.rule(call)
    return f"{name} ({separator} {name})*"


def _call_schema(functions: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the schema of `{"name": ..., key: {...}}`, each tool with its own parameters."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                key: {"$ref": f"#/$defs/{index}"},
            },
            "required": ["name", key],
            "additionalProperties": False,
        }
        for index, function in enumerate(functions)
    ]
    definitions = {
        str(index): _moved(_parameters(function), f"#/$defs/{index}")
        for index, function in enumerate(functions)
    }
    return {"anyOf": calls, "$defs": definitions}


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, which are an object whatever it says."""
    return {**(function.get("parameters") or {}), "type": "object"}


def _moved(schema: Any, place: str) -> Any:
    """Return a schema whose references into itself still hold at another place."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: place + value.removeprefix("#")
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


def _mistral_calls(grammar: Grammar, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    """Return the newer form, a mark before each call, where the tokenizer has its marks."""
    opening = grammar.mark(CALLS)
    if ARGUMENTS not in grammar.format.token_ids:
        count = {} if parallel else {"maxItems": 1}
        call = _call_schema(functions, "arguments")
        calls = {"type": "array", "items": {"anyOf": call["anyOf"]}, "minItems": 1, **count}
        return f'{opening} " "? {grammar.json({**calls, "$defs": call["$defs"]})}'
    mark = grammar.mark(ARGUMENTS)
    bodies = [
        f"{literal(function['name'])} {mark} {grammar.json(_parameters(function))}"
        for function in functions
    ]
    return _repeated(grammar, f"{opening} ({' | '.join(bodies)})", "", parallel)


def _xml_calls(grammar: Grammar, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    bodies = " | ".join(grammar.rule(_xml_function(grammar, each)) for each in functions)
    opening, closing = grammar.mark(OPENING), grammar.mark(CLOSING)
    return _repeated(grammar, rf'{opening} "\n" ({bodies}) "\n" {closing}', r'"\n"', parallel)


def _xml_function(grammar: Grammar, function: Mapping[str, Any]) -> str:
    opening = literal(f"{qwen_xml.FUNCTION}{function['name']}>\n")
    arguments = _tagged_arguments(grammar, function, _xml_parameter)
    return " ".join([opening, *arguments, literal(qwen_xml.FUNCTION_END)])


def _xml_parameter(grammar: Grammar, root: Schema, name: str, schema: Any) -> str:
    opening = literal(f"{qwen_xml.PARAMETER}{name}>\n")
    return rf'{opening} {_value(grammar, root, schema, qwen_xml.PARAMETER_ENDS[0])} "\n"'


def _glm_calls(grammar: Grammar, functions: Sequence[Mapping[str, Any]], parallel: bool) -> str:
    bodies = [
        " ".join([literal(f"{each['name']}\n"), *_tagged_arguments(grammar, each, _glm_argument)])
        for each in functions
    ]
    body = " | ".join(map(grammar.rule, bodies))
    call = f"{grammar.mark(OPENING)} ({body}) {grammar.mark(CLOSING)}"
    return _repeated(grammar, call, r'"\n"', parallel)


def _glm_argument(grammar: Grammar, root: Schema, name: str, schema: Any) -> str:
    key = f"{grammar.mark(glm.KEY)} {literal(name)} {grammar.mark(glm.KEY_END)}"
    value = f"{grammar.mark(glm.VALUE)} {_value(grammar, root, schema, glm.VALUE_END)}"
    return rf'{key} "\n" {value} "\n"'


def _tagged_arguments(
    grammar: Grammar,
    function: Mapping[str, Any],
    argument: Callable[[Grammar, Schema, str, Any], str],
) -> Iterator[str]:
    """Yield the expressions of arguments in the schema's order, also of the optional ones."""
    schema = _parameters(function)
    properties = schema.get("properties")
    required = schema.get("required")
    for name, each in properties.items() if isinstance(properties, Mapping) else ():
        rule = grammar.rule(argument(grammar, schema, name, each))
        is_required = isinstance(required, list) and name in required
        yield rule if is_required else f"{rule}?"


def _value(grammar: Grammar, root: Schema, schema: Any, end: str) -> str:
    """Return a value with its end: a string is text up to there, all else is JSON.

    Of a string's keywords `enum` and `maxLength` are enforced.
    """
    if "string" in qwen_xml.schema_types(schema, root):
        return _text(grammar, qwen_xml.resolved(schema, root), end)
    value = {**_moved(schema, "#/$defs/whole"), "$defs": {"whole": _moved(root, "#/$defs/whole")}}
    return f"{grammar.json(value)} {grammar.mark(end)}"


def _text(grammar: Grammar, schema: Schema, end: str) -> str:
    values = schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(each, str) for each in values):
        return f"({' | '.join(map(literal, values))}) {grammar.mark(end)}"
    longest = schema.get("maxLength")
    return grammar.text_until(end, f"{{0,{longest}}}" if isinstance(longest, int) else "*")
