"""A grammar under construction: Lark rules, the JSON schemas they refer to, a model's marks.

A grammar covers the whole output: first the model's reasoning, where it has any, then the answer.
llguidance is used to check it under limits, nothing else. It knows no tools and no families.

JSON may be spaced freely, as models were trained to write it, but not endlessly: a weak model would
write spaces until its last token.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from neuron_agent.text.output_format import OutputFormat

Schema = Mapping[str, Any]

MAX_ERROR_CHARACTERS = 300
LIMITS = LLParserLimits(initial_lexer_fuel=500_000, max_grammar_size=200_000, verbose_errors=False)
"""About ten milliseconds of regular expressions; a schema of 64 kB takes a tenth of it."""

TAG = re.compile(r"<[^<>\s\[\]]+>")
"""A token of this look is special to llguidance whatever the tokenizer says of it."""
SPACING = r"\x20{1,2}|\r?\n(\x20{0,32}|\t{0,16})"
"""Between JSON's parts: a space, or a new line and its indentation."""


class InvalidStructure(Exception):
    """What was asked for cannot be enforced; the message is for the caller."""


@dataclass(slots=True)
class Grammar:
    """Lark rules, and the JSON schemas they refer to, under construction."""

    format: OutputFormat
    rules: list[str] = field(default_factory=list)
    schemas: list[dict[str, Any]] = field(default_factory=list)

    def json(self, schema: Schema, *, is_strict: bool = False) -> str:
        """Return a reference to JSON under this schema."""
        options = {"whitespace_pattern": SPACING, "coerce_one_of": True, "lenient": not is_strict}
        name = f"json_{len(self.schemas)}"
        self.schemas.append({"name": name, "json_schema": {**schema, "x-guidance": options}})
        return f"@{name}"

    def rule(self, body: str, options: str = "") -> str:
        """Add a rule and return its name."""
        name = f"rule_{len(self.rules)}"
        self.rules.append(f"{name}{options}: {body}")
        return name

    def mark(self, text: str) -> str:
        """Return the expression for a mark: its own token if it is one, else its characters."""
        if text not in self.format.token_ids:
            return literal(text)
        token_id = self.format.token_ids[text]
        if token_id is not None:
            return f"<[{token_id}]>"
        return text if TAG.fullmatch(text) else literal(text)

    def text_until(self, end: str, characters: str = "*") -> str:
        """Return the expression for text and this mark, which does not occur in the text.

        `characters` says how many, as a regular expression does.
        """
        mark = self.mark(end)
        as_token = f"/(?s:.{characters})/ {mark}"
        if TAG.fullmatch(end) and mark != literal(end):
            return as_token
        as_text = self.rule(f"/(?s:.{characters}){regex_literal(end)}/", "[lazy]")
        # Whether llguidance takes such a token for a special one, which no text contains, depends
        # on the tokenizer's file: one of the two never comes to pass.
        return as_text if mark == literal(end) else f"({as_token} | {as_text})"

    def complete(self, answer: str, starts_reasoning: bool, may_reason: bool) -> str:
        """Return the grammar as llguidance takes it. Raises InvalidStructure if it refuses it."""
        start = " ".join(
            part for part in (self._reasoning(starts_reasoning, may_reason), answer) if part
        )
        lark = "\n".join([f"start: {start}", *self.rules])
        grammar = json.dumps({"grammars": [{"lark_grammar": lark}, *self.schemas]})
        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, limits=LIMITS)
        if is_error:
            raise InvalidStructure(_readable(messages[0]))
        return grammar

    def _reasoning(self, starts_reasoning: bool, may_reason: bool) -> str:
        """Return what comes before the answer: the rest of the reasoning, or perhaps all of it."""
        marks = self.format.reasoning
        if marks is None or not (starts_reasoning or may_reason):
            return ""
        rest = rf"{self.text_until(marks.closing)} /\n{{0,2}}/"
        return rest if starts_reasoning else f"({self.mark(marks.opening)} {rest})?"


def literal(text: str) -> str:
    """Return a text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def regex_literal(text: str) -> str:
    """Return a text as it stands in a regular expression between slashes."""
    return "".join(f"\\x{ord(char):02x}" if char in "/\n" else re.escape(char) for char in text)


def _readable(message: str) -> str:
    """Return llguidance's complaint on one short line."""
    return " ".join(message.split())[:MAX_ERROR_CHARACTERS] or "the grammar is refused"
