"""Conversations through templates: nothing added, nothing lost, and failures that are clear."""

from typing import Any

import pytest

from neuron_agent.errors import Unprocessable
from neuron_agent.text.chat_template import ChatTemplate
from tests.neuron_agent.tiny_model import PLAIN_TEMPLATE, TEMPLATE

CHATML = ChatTemplate(TEMPLATE)
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_prompt_is_open_for_the_assistant() -> None:
    prompt = CHATML.render([user("hi")])
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_tools_are_rendered_whole() -> None:
    tool = {**WEATHER, "extra": {"deep": [1, "ü"]}}
    assert '"extra": {"deep": [1, "ü"]}' in CHATML.render([user("hi")], [tool])


@pytest.mark.parametrize("arguments", ['{"city": "Köln"}', "no json", "[1]", "", None])
def test_tool_call_arguments_reach_the_template_as_an_object(arguments: str | None) -> None:
    call = {"function": {"name": "get_weather", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    prompt = CHATML.render([user("hi"), message])
    shown = {'{"city": "Köln"}': '{"city": "Köln"}', "": "{}", None: "{}"}
    assert shown.get(arguments, f'"{arguments}"') in prompt


def test_template_arguments_and_special_tokens_are_known_to_it() -> None:
    template = ChatTemplate("{{ bos_token }}{{ colour }}", {"bos_token": "<s>"})
    assert template.render([user("hi")], template_kwargs={"colour": "red"}) == "<s>red"


def test_developer_is_system_where_the_template_knows_no_other_word() -> None:
    message = {"role": "developer", "content": "Be brief."}
    assert "<|im_start|>system\nBe brief." in CHATML.render([message])
    own = ChatTemplate("{# developer #}{{ messages[0].role }}")
    assert own.render([message]) == "developer"


def test_template_that_cannot_take_tools_does_not_drop_them() -> None:
    with pytest.raises(Unprocessable, match="cannot take tools") as caught:
        ChatTemplate(PLAIN_TEMPLATE).render([user("hi")], [WEATHER])
    assert caught.value.code == "template_render_failed"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system, please') }}",
        "{{ messages[5].content }}",
        "{% for x in %}",
        "{{ 1 / 0 }}",
        "{{ messages.__class__.__mro__ }}",
    ],
)
def test_template_that_fails_fails_the_request_with_its_code(source: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        ChatTemplate(source).render([user("hi")])
    assert caught.value.code == "template_render_failed"


def test_abilities_are_read_from_the_source() -> None:
    assert (CHATML.takes_tools, CHATML.takes_reasoning) == (True, True)
    plain = ChatTemplate(PLAIN_TEMPLATE)
    assert (plain.takes_tools, plain.takes_reasoning) == (False, False)
