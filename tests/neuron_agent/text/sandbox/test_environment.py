"""Templates render as transformers renders them, and bombs fail before they take anything."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import SecurityError, TemplateError

import neuron_agent.demo
from neuron_agent.text.sandbox import budget
from neuron_agent.text.sandbox.budget import TooMuch, budgeted
from neuron_agent.text.sandbox.environment import REMOVED_FILTERS, compile_template
from tests.neuron_agent.text.outputs import TOOLS
from tests.neuron_agent.tiny_model import TEMPLATE

NOW = datetime(2031, 5, 7, 11, 30)  # noqa: DTZ001
DEMO = (Path(neuron_agent.demo.__file__).parent / "chat_template.jinja").read_text()
CALL = {"function": {"name": "ping", "arguments": {"a": [1, "ü<b>"], "c": None}}}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is <b>1 + 1</b>?  "},
    {"role": "assistant", "content": "hm</think>\n\n2", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
]
WORDY = """
{%- macro show(message, times=2) -%}
    [{{ message.role | upper }}|{{ loop_note }}: {{ (message.content | trim) * times }}]
{%- endmacro -%}
{%- set ns = namespace(last=-1, roles=[], text='') -%}
{%- for message in messages if message.role != 'tool' -%}
    {%- if loop.index0 > 3 %}{% break %}{% endif -%}
    {%- set ns.last = loop.index0 -%}
    {%- set ns.roles = ns.roles + [message.role] -%}
    {%- set ns.text = ns.text ~ loop.index ~ ('/' + loop.length|string) ~ none ~ undefined_name -%}
    {{- show(message, times=1) }}
{%- endfor -%}
{%- generation %}{{ ns.roles | join(', ') }} {{ ns.text }}{% endgeneration -%}
{{ tools | map(attribute='function') | map(attribute='name') | list | tojson }}
{{ dict(a=1, b={'x': [1, (2, 3)]}) | tojson(indent=2) }}
{% for key, value in messages[2].tool_calls[0].function.arguments | items -%}
    {{ key }}={{ value if value is not none else 'nothing' }};{{ '%s-%03d' % (key, 7) }}
{% endfor -%}
{% set block %}{{ messages[1].content.replace('1', 'one').strip().split(' ') }}{% endset -%}
{{ block }} {{ [1, 2, 3][1:] }} {{ 7 // 2 }} {{ 2 ** 10 }} {{ 'a,b'.split(',')[-1] }} {{- eos -}}
"""


def render(source: str, **values: Any) -> str:
    with budgeted(lambda: NOW):
        return compile_template(source).render(**values)


@pytest.mark.parametrize("source", [TEMPLATE, DEMO, WORDY])
@pytest.mark.parametrize("more", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_templates_render_as_transformers_renders_them(source: str, more: dict[str, Any]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    values = {"tools": TOOLS, "add_generation_prompt": True, "eos": "</s>", **more}
    expected, _ = render_jinja_template([CONVERSATION], chat_template=source, **values)
    assert render(source, messages=CONVERSATION, documents=None, **values) == expected[0]


CONSTRUCTS = (Path(__file__).parent / "constructs.jinja").read_text().splitlines()
"""What templates of Qwen, Llama, Mistral, Gemma, DeepSeek, GLM and gpt-oss are written with."""


@pytest.mark.parametrize("source", CONSTRUCTS)
def test_constructs_of_known_templates_do_what_they_do_in_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    expected, _ = render_jinja_template([CONVERSATION], chat_template=source, tools=TOOLS)
    assert render(source, messages=CONVERSATION, tools=TOOLS) == expected[0]


def test_the_date_is_that_of_the_clock() -> None:
    assert render("{{ strftime_now('%d %B %Y') }}") == "07 May 2031"


GROW = "{% set ns = namespace(v=START) %}{% for i in range(60) %}STEP{% endfor %}{{ ns.v }}"


def growing(start: str, step: str) -> str:
    return GROW.replace("START", start).replace("STEP", step)


BOMBS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) if range(99999) | select('odd') | list %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | list | sort %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    growing("'ab'", "{% set ns.v = ns.v ~ ns.v %}"),
    growing("'ab'", "{% set ns.v = ns.v + ns.v %}"),
    growing("'ab'", "{% set ns.v %}{{ ns.v }}{{ ns.v }}{% endset %}"),
    growing("[1]", "{% set ns.v = ns.v + ns.v %}"),
    growing("[1]", "{% set ns.v = [ns.v, ns.v] %}"),
    growing("(1, 2)", "{% set ns.v = (ns.v, ns.v) %}"),
    growing("{}", "{% set ns.v = {'a': ns.v, 'b': ns.v} %}"),
    growing("{}", "{% set ns.v = dict(a=ns.v, b=ns.v) %}"),
    growing("3", "{% set ns.v = ns.v * ns.v %}"),
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'a' }}",
    "{{ ([1] * 10 ** 9) | length }}",
    "{{ 'a'.ljust(10 ** 9) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "{% set s = 'a' * 99999 %}{{ s.replace('a', s) }}",
    "{% set s = 'a' * 99999 %}{{ s | replace('', s) }}",
    "{% set s = 'a' * 99999 %}{{ s.join(s) }}",
    "{% set s = 'a' * 99999 %}{{ range(9999) | join(s) }}",
    "{% set s = 'a' * 99999 %}{{ range(9999) | map('string') | join(s) }}",
    "{% set s = '%s' * 999 %}{{ s % ((('a' * 99999),) * 999) }}",
    "{{ ('\\n' * 99999) | indent(99999) }}",
    "{{ [1] | tojson(indent=1000000000) }}",
    "{{ ('a ' * 99999) | title }}",
    "{{ ('a ' * 99999) | unique | list }}",
    "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "{{ [1] | slice(1000000000) | list | length }}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_a_bomb_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MAX_STEPS", 5_000)
    monkeypatch.setattr(budget, "MAX_CHARACTERS", 1_000_000)
    monkeypatch.setattr(budget, "MAX_VALUES", 10_000)
    with pytest.raises(TooMuch):
        render(source)


def test_a_template_that_takes_too_long_is_stopped() -> None:
    times = iter(NOW.replace(minute=minute) for minute in range(30, 60))
    with budgeted(lambda: next(times)), pytest.raises(TooMuch, match="longer than"):
        compile_template("{% for i in range(99999) %}{% endfor %}").render()


@pytest.mark.parametrize(
    "source",
    [
        "{{ (1).to_bytes(1000000000, 'big') }}",
        "{{ 'a'.encode().ljust(1000000000) }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ messages.append(1) }}",
        "{{ lipsum(1000000) }}",
        *(f"{{{{ 'a' | {name}(9) }}}}" for name in REMOVED_FILTERS),
    ],
)
def test_what_no_conversation_needs_is_not_there(source: str) -> None:
    with pytest.raises((SecurityError, TemplateError)):
        render(source, messages=[1])


LOOKS_AHEAD = """
{%- for message in messages -%}
    {%- set ns = namespace(is_last=true) -%}
    {%- for later in messages[loop.index:] if later.role == 'assistant' and not later.tool_calls -%}
        {%- set ns.is_last = false -%}
    {%- endfor -%}
    {{- loop.index == messages|length }}{{ (messages|last).role }}{{ ns.is_last -}}
{%- endfor -%}"""


def test_a_template_that_looks_ahead_from_every_turn_stays_within_the_budget() -> None:
    conversation = CONVERSATION * 160  # 800 turns
    assert render(LOOKS_AHEAD, messages=conversation).count("True") > 2


def test_to_ask_for_the_length_in_every_turn_takes_a_step_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "MAX_STEPS", 10_000)
    asked = "{% for m in messages %}{{ messages|length }}{{ (messages|last).role }}{% endfor %}"
    assert render(asked, messages=CONVERSATION * 160).startswith("800user800")


def test_a_long_conversation_stays_within_the_budget() -> None:
    conversation = CONVERSATION * 2_000
    assert len(render(DEMO, messages=conversation, add_generation_prompt=True)) > 300_000
