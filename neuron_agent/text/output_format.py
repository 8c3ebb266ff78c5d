"""How a model writes what it thinks and what it calls, told from its chat template.

Two tables, one row per kind of mark and per family; a template belongs to a row if it has the row's
words. A model of no row just says everything. It reads no files and parses no output: it makes the
parsers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from neuron_agent.text.calls import Family
from neuron_agent.text.families.glm import Glm
from neuron_agent.text.families.hermes import Hermes
from neuron_agent.text.families.llama import Llama
from neuron_agent.text.families.mistral import Mistral
from neuron_agent.text.families.qwen_xml import QwenXml
from neuron_agent.text.output_parser import OutputParser, ReasoningMarks


class ToolFamily(StrEnum):
    HERMES = "hermes"
    QWEN_XML = "qwen_xml"
    LLAMA = "llama"
    MISTRAL = "mistral"
    GLM = "glm"


FAMILIES: Mapping[ToolFamily, Family] = {
    ToolFamily.HERMES: Hermes(),
    ToolFamily.QWEN_XML: QwenXml(),
    ToolFamily.LLAMA: Llama(),
    ToolFamily.MISTRAL: Mistral(),
    ToolFamily.GLM: Glm(),
}

REASONING_MARKS = (
    ReasoningMarks("<think>", "</think>"),  # DeepSeek, Qwen and most others
    ReasoningMarks("[THINK]", "[/THINK]"),  # Mistral
    ReasoningMarks("<seed:think>", "</seed:think>"),
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ReasoningMarks("<reasoning>", "</reasoning>"),
    ReasoningMarks("<thought>", "</thought>"),
)
"""The first pair that the template or the tokenizer knows is the model's."""

FAMILY_WORDS: tuple[tuple[ToolFamily, tuple[str, ...], tuple[str, ...]], ...] = (
    (ToolFamily.MISTRAL, ("[TOOL_CALLS]",), ()),
    (ToolFamily.QWEN_XML, ("<function=", "<parameter="), ()),
    (ToolFamily.GLM, ("<tool_call>", "<arg_key>"), ()),
    (ToolFamily.HERMES, ("<tool_call>",), ("<function=",)),
    (ToolFamily.LLAMA, ("<|python_tag|>",), ()),
    (ToolFamily.LLAMA, ('{"name": function name, "parameters":',), ()),
)
"""Family, the words a template must all have, and those it must not: the first that fits wins."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """A model's marks. `token_ids` has those of its markup that are one token each."""

    reasoning: ReasoningMarks | None = None
    tools: ToolFamily | None = None
    token_ids: Mapping[str, int | None] = field(default_factory=dict)

    def opens_reasoning(self, rendered_prompt: str) -> bool:
        """Whether the prompt ends where the model is already reasoning."""
        marks = self.reasoning
        return marks is not None and rendered_prompt.rstrip().endswith(marks.opening)

    def closes_reasoning(self, rendered_prompt: str) -> bool:
        """Whether the prompt ends with reasoning that is over: the model adds none."""
        marks = self.reasoning
        return marks is not None and rendered_prompt.rstrip().endswith(marks.closing)

    def new_parser(
        self, *, starts_reasoning: bool, tools: Sequence[Mapping[str, Any]]
    ) -> OutputParser:
        """Return a parser for one output; `tools` are the request's, as OpenAI writes them."""
        return OutputParser(
            reasoning=self.reasoning,
            family=FAMILIES[self.tools] if self.tools else None,
            tools=tools,
            starts_reasoning=starts_reasoning,
        )


def detect_format(template_source: str | None, added_tokens: Collection[str]) -> OutputFormat:
    """Return how the model writes. Give the added tokens as a mapping to their ids if known:
    marks that do not look like `<tag>` can be forced as tokens only by id."""
    source = template_source or ""
    ids: Mapping[str, int] = added_tokens if isinstance(added_tokens, Mapping) else {}
    return OutputFormat(
        reasoning=_find_marks(source, added_tokens),
        tools=_find_family(source),
        token_ids={token: ids.get(token) for token in added_tokens},
    )


def _find_marks(source: str, added_tokens: Collection[str]) -> ReasoningMarks | None:
    """Return the marks the template speaks of, else those the tokenizer has both of."""
    in_template = (marks for marks in REASONING_MARKS if marks.closing in source)
    in_tokens = (
        marks
        for marks in REASONING_MARKS
        if marks.opening in added_tokens and marks.closing in added_tokens
    )
    return next(in_template, None) or next(in_tokens, None)


def _find_family(source: str) -> ToolFamily | None:
    for family, words, others in FAMILY_WORDS:
        if all(word in source for word in words) and not any(word in source for word in others):
            return family
    return None
