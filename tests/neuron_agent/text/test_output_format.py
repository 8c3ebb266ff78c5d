"""A model's marks and family are told from its template's own words."""

import pytest

from neuron_agent.text.output_format import REASONING_MARKS, ToolFamily, detect_format
from tests.neuron_agent.tiny_model import PLAIN_TEMPLATE, TEMPLATE

QWEN_CODER = "<tool_call>\n<function=example>\n<parameter=a>\n</parameter></function></tool_call>"
LLAMA = """Respond in the format {"name": function name, "parameters": dictionary of arguments}."""


@pytest.mark.parametrize(
    ("source", "family"),
    [
        (TEMPLATE, ToolFamily.HERMES),
        (QWEN_CODER, ToolFamily.QWEN_XML),
        (LLAMA, ToolFamily.LLAMA),
        ("{{ '<|python_tag|>' }}", ToolFamily.LLAMA),
        ("{{ '[TOOL_CALLS] [' }}", ToolFamily.MISTRAL),
        ("<tool_call>{{ name }}\n<arg_key>", ToolFamily.GLM),
        (PLAIN_TEMPLATE, None),
        (None, None),
    ],
)
def test_the_family_is_told_from_the_template(
    source: str | None, family: ToolFamily | None
) -> None:
    assert detect_format(source, ()).tools == family


@pytest.mark.parametrize("marks", REASONING_MARKS)
def test_reasoning_marks_are_found_in_template_or_tokens(marks: object) -> None:
    opening, closing = marks.opening, marks.closing  # type: ignore[attr-defined]
    assert detect_format(f"x {closing} y", ()).reasoning == marks
    assert detect_format("x", {opening: 1, closing: 2}).reasoning == marks
    assert detect_format("x", {opening}).reasoning is None


def test_the_templates_marks_go_before_the_tokens() -> None:
    found = detect_format("[/THINK]", ["<think>", "</think>"]).reasoning
    assert found is not None
    assert found.opening == "[THINK]"


def test_ids_of_tokens_are_kept_where_they_are_given() -> None:
    assert detect_format(None, {"<think>": 7}).token_ids == {"<think>": 7}
    assert detect_format(None, ["<think>"]).token_ids == {"<think>": None}


@pytest.mark.parametrize(
    ("prompt", "opens", "closes"),
    [
        ("<|im_start|>assistant\n<think>\n", True, False),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False, True),
        ("<|im_start|>assistant\n", False, False),
        ("Write <think>, please.", False, False),
    ],
)
def test_a_prompt_may_open_or_close_reasoning(prompt: str, opens: bool, closes: bool) -> None:
    output_format = detect_format(TEMPLATE, ())
    assert output_format.opens_reasoning(prompt) == opens
    assert output_format.closes_reasoning(prompt) == closes
    assert not detect_format(PLAIN_TEMPLATE, ()).opens_reasoning(prompt)
    assert not detect_format(PLAIN_TEMPLATE, ()).closes_reasoning(prompt)
