"""Conversations through templates: nothing added, nothing lost, and failures that are clear."""

from typing import Any

import pytest

from neuron_agent.errors import Unprocessable
from neuron_agent.text.chat_template import ChatTemplate
from neuron_agent.text.sandbox import budget
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


# --- instructions where a template does not want them --------------------------------------------

IN_PLACE = """
{%- for message in messages %}[{{ message.role }}: {{ message.content | trim }}]{% endfor %}"""
AT_THE_START = """
{%- for message in messages %}
    {%- if message.role == "system" and not loop.first %}
        {{- raise_exception("a system message comes first") }}
    {%- endif %}[{{ message.role }}: {{ message.content }}]
{%- endfor %}"""
IN_TURNS = """
{%- set talk = messages[1:] if messages[0].role == "system" else messages %}
{%- for message in talk %}
    {%- if message.role != ("assistant" if loop.index0 % 2 else "user") %}
        {{- raise_exception("user and assistant take turns") }}
    {%- endif %}
    {%- if loop.last and talk | length < messages | length %}[system: {{ messages[0].content }}]
    {%- endif %}[{{ message.role }}: {{ message.content }}]
{%- endfor %}"""
WITHOUT = """
{%- for message in messages %}
    {%- if message.role != ("assistant" if loop.index0 % 2 else "user") %}
        {{- raise_exception("only user and assistant, in turns") }}
    {%- endif %}[{{ message.role }}: {{ message.content }}]
{%- endfor %}"""
SKIPPING = """
{%- if messages[0].role == "system" %}[system: {{ messages[0].content }}]{% endif %}
{%- for message in messages if message.role != "system" %}
    {#- #}[{{ message.role }}: {{ message.content }}]
{%- endfor %}"""


def talk(roles: str) -> list[dict[str, Any]]:
    """Return messages by their initials, numbered."""
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    return [{"role": names[r], "content": f"{r}{number}"} for number, r in enumerate(roles, 1)]


@pytest.mark.parametrize(
    ("source", "roles", "expected"),
    [
        (IN_PLACE, "suas", "[system: s1][user: u2][assistant: a3][system: s4]"),
        (IN_PLACE, "usuu", "[user: u1][system: s2][user: u3][user: u4]"),
        (AT_THE_START, "su", "[system: s1][user: u2]"),
        (AT_THE_START, "suas", "[system: s1\n\ns4][user: u2][assistant: a3]"),
        (AT_THE_START, "us", "[system: s2][user: u1]"),
        (AT_THE_START, "dud", "[system: d1\n\nd3][user: u2]"),
        (IN_TURNS, "suau", "[user: u2][assistant: a3][system: s1][user: u4]"),
        (IN_TURNS, "susau", "[user: u2][assistant: a4][system: s1\n\ns3][user: u5]"),
        (IN_TURNS, "susu", "[system: s1\n\ns3][user: u2\n\nu4]"),
        (IN_TURNS, "uaus", "[user: u1][assistant: a2][system: s4][user: u3]"),
        (WITHOUT, "sua", "[user: s1\n\nu2][assistant: a3]"),
        (WITHOUT, "suasu", "[user: s1\n\ns4\n\nu2][assistant: a3][user: u5]"),
        (WITHOUT, "uu", "[user: u1\n\nu2]"),
        (SKIPPING, "suau", "[system: s1][user: u2][assistant: a3][user: u4]"),
        (SKIPPING, "suasu", "[system: s1\n\ns4][user: u2][assistant: a3][user: u5]"),
    ],
)
def test_instructions_stand_where_the_template_takes_them(
    source: str, roles: str, expected: str
) -> None:
    assert ChatTemplate(source).render(talk(roles)) == expected


@pytest.mark.parametrize(("source", "roles"), [(WITHOUT, "s"), (WITHOUT, "sa"), (IN_TURNS, "sa")])
def test_what_no_form_helps_is_refused_in_the_words_for_the_conversation_as_it_is(
    source: str, roles: str
) -> None:
    with pytest.raises(Unprocessable, match="user and assistant"):
        ChatTemplate(source).render(talk(roles))


def test_instructions_that_no_form_shows_do_not_change_the_form() -> None:
    template = ChatTemplate("{% for message in messages %}[{{ message.role }}]{% endfor %}")
    assert template.render(talk("sus")) == "[system][user][system]"


def test_all_forms_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_STEPS", 1000)
    template = ChatTemplate("{% for x in range(600) %}{% endfor %}{{ raise_exception('no') }}")
    with pytest.raises(Unprocessable, match="template failed: no"):
        template.render([user("hi")])
    with pytest.raises(Unprocessable, match="more than 1000 steps"):
        template.render(talk("sus"))


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
