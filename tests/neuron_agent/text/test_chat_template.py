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


def test_a_template_that_adds_arguments_to_its_text_gets_them_as_text() -> None:
    source = "{{ 'CALL ' + messages[0].tool_calls[0].function.arguments + ' END' }}"
    call = {"function": {"name": "f", "arguments": '{"city":  "Köln"}'}}
    message = {"role": "assistant", "tool_calls": [call]}
    assert ChatTemplate(source).render([message]) == 'CALL {"city":  "Köln"} END'


def test_a_template_that_adds_what_is_no_text_fails_the_request() -> None:
    with pytest.raises(Unprocessable, match="can only concatenate"):
        ChatTemplate("{{ 'x' + messages[0] }}").render([user("hi")])


MISTRAL_IDS = """
{%- for message in messages -%}
    {%- for id in [message.tool_call_id] + (message.tool_calls or []) | map(attribute='id') | list
            if id is defined -%}
        {%- if id|length != 9 %}{{ raise_exception('ids have length 9!') }}{% endif %}{{ id }};
    {%- endfor -%}
{%- endfor -%}"""


@pytest.mark.parametrize("call_id", ["call_5f0c6a2e-8a51", "x", "", "nine-char", "ü" * 9, "\ud800"])
def test_a_call_and_its_result_share_an_id_of_the_length_a_template_wants(call_id: str) -> None:
    call = {"id": call_id, "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id},
    ]
    of_call, of_result, _ = ChatTemplate(MISTRAL_IDS).render(messages).split(";")
    assert of_call == of_result
    assert len(of_call) == 9


def test_an_id_that_is_short_enough_stays() -> None:
    message = {"role": "tool", "tool_call_id": "abcDEF123"}
    assert ChatTemplate(MISTRAL_IDS).render([message]) == "abcDEF123;"


def test_a_template_that_only_speaks_of_tools_cannot_take_them() -> None:
    with pytest.raises(Unprocessable, match="cannot take tools"):
        ChatTemplate("You have no tools.{# tools #}").render([user("hi")], [WEATHER])


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


def test_a_template_that_takes_too_much_fails_the_request_with_its_code() -> None:
    with pytest.raises(Unprocessable, match="is stopped: it makes a text of") as caught:
        ChatTemplate("{{ messages[0].content * 10 ** 9 }}").render([user("hi")])
    assert caught.value.code == "template_render_failed"


def test_a_recursion_without_end_fails_the_request() -> None:
    with pytest.raises(Unprocessable, match="nested too deeply"):
        ChatTemplate("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").render([user("hi")])


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_reaches_the_template_under_the_names_it_may_use(name: str) -> None:
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    message = {"role": "assistant", "content": "x", name: "hm"}
    assert ChatTemplate(source).render([message]) == "hm hm"


def test_whether_it_takes_tools_is_read_from_the_source() -> None:
    assert CHATML.takes_tools
    assert not ChatTemplate(PLAIN_TEMPLATE).takes_tools
    assert not ChatTemplate("{% for tools in %}").takes_tools
