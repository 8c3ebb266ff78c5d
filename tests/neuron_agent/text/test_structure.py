"""Whatever a model picks under a grammar, the output parser reads what was asked for.

The model here picks at random among the tokens that llguidance allows.
"""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from neuron_agent.text.grammar import MAX_ERROR_CHARACTERS, Schema
from neuron_agent.text.output_format import OutputFormat, ToolFamily, detect_format
from neuron_agent.text.output_parser import ReasoningMarks
from neuron_agent.text.pieces import Thought
from neuron_agent.text.structure import (
    InvalidStructure,
    forced_call_grammar,
    json_object_grammar,
    json_schema_grammar,
)
from tests.neuron_agent.text.outputs import THINK, calls_of, parse, said
from tests.neuron_agent.tiny_model import build_tokenizer

MARKS = ["</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]", "<|python_tag|>"]
MARKS += ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
MAX_TOKENS = 1500
PLAIN = OutputFormat()
PLACE = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["x"],
    "additionalProperties": False,
}
FIND: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "properties": {
                "what": {"type": "string", "maxLength": 4},
                "where": {"$ref": "#/$defs/Place"},
                "how": {"enum": ["near", "far"]},
            },
            "required": ["where"],
            "additionalProperties": False,
            "$defs": {"Place": PLACE},
        },
    },
}
PING: dict[str, Any] = {
    "type": "function",
    "function": {"name": "ping", "parameters": {"properties": {}, "additionalProperties": False}},
}
TOOLS = [FIND, PING]


class World:
    """A tokenizer with the marks of all families as tokens, and llguidance's view of it."""

    def __init__(self) -> None:
        self.tokenizer: Tokenizer = build_tokenizer()
        self.tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
        self.tokenizer.add_special_tokens([AddedToken(mark) for mark in ("[DEEP]", "[/DEEP]")])
        self.end_id: int = self.tokenizer.token_to_id("<|im_end|>")
        self.size: int = self.tokenizer.get_vocab_size()
        self.masks = LLTokenizer(self.tokenizer.to_str(), n_vocab=self.size, eos_token=self.end_id)

    @property
    def token_ids(self) -> dict[str, int | None]:
        tokens = self.tokenizer.get_added_tokens_decoder()
        return {token.content: token_id for token_id, token in tokens.items()}

    def pick(self, grammar: str, seed: int) -> str:
        """Return an output under the grammar, picked at random."""
        matcher, chance = LLMatcher(self.masks, grammar, log_level=0), random.Random(seed)
        picked: list[int] = []
        for _ in range(MAX_TOKENS):
            mask = matcher.compute_bitmask()
            allowed = [i for i in range(self.size) if mask[i // 8] >> i % 8 & 1]
            assert allowed, matcher.get_error()
            token_id = self.end_id if self.end_id in allowed else chance.choice(allowed)
            if token_id == self.end_id:
                return str(self.tokenizer.decode(picked, skip_special_tokens=False))
            assert matcher.consume_token(token_id), matcher.get_error()
            picked.append(token_id)
        raise AssertionError("the grammar never let the output end")

    def accepts(self, grammar: str, text: str) -> bool:
        matcher = LLMatcher(self.masks, grammar, log_level=0)
        token_ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def shaped(world: World, family: ToolFamily | None, **more: Any) -> OutputFormat:
    """Return a format whose marks are single tokens."""
    return OutputFormat(tools=family, token_ids=world.token_ids, **more)


SCHEMAS: list[dict[str, Any]] = [
    PLACE,
    {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 6}]},
    {"type": "string", "pattern": "^[a-f]{2,4}$"},
    {"$ref": "#/$defs/P", "$defs": {"P": PLACE}},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_whatever_is_picked_under_a_schema_is_json(world: World, schema: dict[str, Any]) -> None:
    grammar = json_schema_grammar(schema, shaped(world, None), False)
    for seed in range(20):
        json.loads(world.pick(grammar, seed))


def test_a_schema_is_kept(world: World) -> None:
    grammar = json_schema_grammar(PLACE, PLAIN, False)
    assert world.accepts(grammar, '{"x": 7}')
    assert world.accepts(grammar, '{\n  "x": 7\n}')
    assert not world.accepts(grammar, '{"x": 700}')
    assert not world.accepts(grammar, '{"x": 7, "y": 1}')
    assert not world.accepts(grammar, '{"x":' + " " * 40 + "7}")


@pytest.mark.parametrize("family", ToolFamily)
def test_with_tools_an_answer_under_a_schema_may_be_a_call(
    world: World, family: ToolFamily
) -> None:
    output_format = shaped(world, family)
    grammar = json_schema_grammar(PLACE, output_format, False, tools=TOOLS)
    assert world.accepts(grammar, '{"x": 7}')
    assert not world.accepts(grammar, "It is 7.")
    call = world.pick(forced_call_grammar([PING], None, output_format, False, False), 1)
    assert world.accepts(grammar, call)
    assert calls_of(parse(output_format, [call], tools=TOOLS)) == [("ping", {})]
    unknown = json_schema_grammar(PLACE, PLAIN, False, tools=TOOLS)
    assert world.accepts(unknown, '{"x": 7}')


def test_a_json_object_is_an_object(world: World) -> None:
    grammar = json_object_grammar(PLAIN, False)
    assert world.accepts(grammar, '{"a": [1, {"b": "ü"}]}')
    assert not world.accepts(grammar, "[1]")
    assert not world.accepts(grammar, "{} and")


FAMILIES_AND_MARKS = [(family, has_ids) for family in ToolFamily for has_ids in (True, False)]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("family", "has_ids"), FAMILIES_AND_MARKS)
def test_forced_calls_are_read_back(
    world: World, family: ToolFamily, has_ids: bool, parallel: bool
) -> None:
    token_ids = world.token_ids if has_ids else dict.fromkeys(world.token_ids)
    output_format = OutputFormat(tools=family, token_ids=token_ids)
    grammar = forced_call_grammar(TOOLS, None, output_format, False, parallel)
    for seed in range(6):
        pieces = parse(output_format, [world.pick(grammar, seed)], tools=TOOLS)
        assert said(pieces) == ""
        check_calls(calls_of(pieces))


def check_calls(calls: Sequence[tuple[str, Any]]) -> None:
    assert calls
    for name, arguments in calls:
        if name == "ping":
            assert arguments == {}
            continue
        assert name == "find"
        assert arguments.keys() <= {"what", "where", "how"}
        assert 0 <= arguments["where"]["x"] <= 99
        assert arguments.get("how", "near") in ("near", "far")
        assert len(arguments.get("what", "")) <= 4


@pytest.mark.parametrize("family", ToolFamily)
def test_a_named_tool_is_called_once_and_no_other(world: World, family: ToolFamily) -> None:
    output_format = shaped(world, family)
    grammar = forced_call_grammar(TOOLS, "ping", output_format, False, False)
    for seed in range(4):
        pieces = parse(output_format, [world.pick(grammar, seed)], tools=TOOLS)
        assert calls_of(pieces) == [("ping", {})]


def test_mistral_writes_lists_where_it_has_no_mark_for_arguments(world: World) -> None:
    output_format = OutputFormat(tools=ToolFamily.MISTRAL, token_ids={"[TOOL_CALLS]": None})
    for parallel in (False, True):
        grammar = forced_call_grammar(TOOLS, None, output_format, False, parallel)
        text = world.pick(grammar, 1)
        assert text.startswith("[TOOL_CALLS]")
        assert text.endswith("]")
        check_calls(calls_of(parse(output_format, [text], tools=TOOLS)))
        both = '[TOOL_CALLS][{"name": "ping", "arguments": {}}, {"name": "ping", "arguments": {}}]'
        assert world.accepts(grammar, both) == parallel


MARK_KINDS: list[Callable[[World], OutputFormat]] = [
    lambda world: shaped(world, None, reasoning=THINK),
    lambda world: detect_format("</think>", list(world.token_ids)),
    lambda world: shaped(world, None, reasoning=ReasoningMarks("[THINK]", "[/THINK]")),
    lambda world: shaped(world, None, reasoning=ReasoningMarks("[DEEP]", "[/DEEP]")),
    lambda world: OutputFormat(reasoning=ReasoningMarks("<b>", "</b/>")),
]


@pytest.mark.parametrize("make_format", MARK_KINDS)
def test_reasoning_comes_before_the_structure(
    world: World, make_format: Callable[[World], OutputFormat]
) -> None:
    output_format = make_format(world)
    marks = output_format.reasoning
    assert marks is not None
    reasoned = f"\nIt is {{7}}.\n{marks.closing}\n\n"
    opened = json_schema_grammar(PLACE, output_format, True)
    closed = json_schema_grammar(PLACE, output_format, False)
    over = json_schema_grammar(PLACE, output_format, False, may_reason=False)
    answer = '{"x": 7}'
    for grammar, prefix, is_accepted in [
        (opened, reasoned, True),
        (opened, "", False),
        (closed, marks.opening + reasoned, True),
        (closed, "", True),
        (closed, reasoned, False),
        (over, "", True),
        (over, marks.opening + reasoned, False),
    ]:
        assert world.accepts(grammar, prefix + answer) == is_accepted
    pieces = parse(output_format, [reasoned + answer], starts_reasoning=True)
    assert pieces[0] == Thought("It is {7}.")
    assert said(pieces) == answer


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ({"description": "x" * 100_000}, "at most 65536"),
        (nested(100), "nested 102 deep"),
        (nested(50_000), "nested 50002 deep"),
        ({"type": "foo"}, "foo"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex parse error"),
        ({"type": "string", "pattern": "(a(?R)?b)"}, "regex parse error"),
        ({"type": "string", "pattern": "(" * 9000 + ")" * 9000}, "regex parse error"),
        ({"type": "string", "format": "no such format"}, "format"),
        ({"$ref": "http://127.0.0.1:9/x"}, "not present"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "Unsatisfiable"),
        ({"const": float("nan")}, "expected value"),
        ({"const": "\ud800"}, "escape"),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_a_sentence(schema: Any, complaint: str) -> None:
    with pytest.raises(InvalidStructure, match=complaint) as caught:
        json_schema_grammar(schema, PLAIN, False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= MAX_ERROR_CHARACTERS


def test_where_it_is_not_strict_what_cannot_be_enforced_is_ignored() -> None:
    schema = {"type": "string", "format": "no such format"}
    assert json_schema_grammar(schema, PLAIN, False, is_strict=False)


@pytest.mark.parametrize(
    ("tools", "name", "family", "complaint"),
    [
        (TOOLS, "fetch", ToolFamily.HERMES, "no tool named 'fetch'"),
        ([], None, ToolFamily.HERMES, "no tools"),
        (TOOLS, None, None, "not known"),
        (
            [{"function": {"name": "f", "parameters": [1]}}],
            None,
            ToolFamily.HERMES,
            "of 'f' are no schema",
        ),
        (
            [{"function": {"name": "f", "parameters": {"title": "x" * 100_000}}}],
            None,
            ToolFamily.QWEN_XML,
            "the parameters of 'f' has",
        ),
        (
            [
                {"function": {"name": f"f{n}", "parameters": {"title": "x" * 60_000}}}
                for n in range(5)
            ],
            None,
            ToolFamily.LLAMA,
            "the tools has",
        ),
    ],
)
def test_calls_that_cannot_be_forced_are_refused(
    tools: Any, name: str | None, family: ToolFamily | None, complaint: str
) -> None:
    with pytest.raises(InvalidStructure, match=complaint):
        forced_call_grammar(tools, name, OutputFormat(tools=family), False, False)


def test_recursive_schemas_are_taken(world: World) -> None:
    tree = {"type": "array", "items": {"$ref": "#"}}
    assert world.accepts(json_schema_grammar(tree, PLAIN, False), "[[], [[]]]")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda part: {"type": "object", "properties": {"a": part}},
        lambda part: {"allOf": [{"allOf": [{"allOf": [part]}]}]},
        lambda part: {"type": "array", "items": part},
    ],
)
def test_a_long_chain_of_references_is_refused_and_the_process_lives(
    wrap: Callable[[Schema], Schema],
) -> None:
    with pytest.raises(InvalidStructure, match="refers to too many definitions"):
        json_schema_grammar(chain_of(1000, wrap), PLAIN, False)
    assert json_schema_grammar(chain_of(60, wrap), PLAIN, False)


def test_a_long_chain_from_deep_inside_one_another_is_refused() -> None:
    def wrap(part: Schema) -> Schema:
        for _ in range(25):
            part = {"allOf": [part]}
        return part

    with pytest.raises(InvalidStructure, match="refers to too many definitions"):
        json_schema_grammar(chain_of(125, wrap), PLAIN, False)


def test_a_schema_may_refer_to_itself() -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    assert json_schema_grammar(tree, PLAIN, False)


def chain_of(length: int, wrap: Callable[[Schema], Schema]) -> Schema:
    """A schema whose definitions each refer to the next."""
    parts = {f"{i:x}": wrap({"$ref": f"#/$defs/{i + 1:x}"}) for i in range(length - 1)}
    return {"$defs": {**parts, f"{length - 1:x}": {}}, "$ref": "#/$defs/0"}
