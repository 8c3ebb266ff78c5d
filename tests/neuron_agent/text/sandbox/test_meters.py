"""Every place in a template that can be passed again and again has a meter."""

import pytest
from jinja2 import nodes

from neuron_agent.text.sandbox.environment import Environment


def meters_in(source: str) -> list[str]:
    tree = Environment().parse(source)
    return [node.name for node in tree.find_all(nodes.EnvironmentAttribute)]


@pytest.mark.parametrize(
    ("source", "meters"),
    [
        ("plain {{ text }} {% if a %}b{% endif %}", []),
        ("{% for a in b %}{{ a }}{% endfor %}", ["pass_turn"]),
        ("{% for a in b if a %}{{ a }}{% endfor %}", ["pass_items", "pass_turn"]),
        ("{% macro f() %}x{% endmacro %}", ["pass_turn"]),
        ("{% call f() %}x{% endcall %}", ["pass_turn"]),
        ("{{ a ~ b }}", ["join_texts"]),
        ("{{ [a] }}", ["limit_value"]),
        ("{{ {'a': b} }}", ["limit_value"]),
        ("{{ [1, 'b', (2, 3)] }}", []),
        ("{% set a, b = c %}", []),
    ],
)
def test_meters_stand_where_work_can_repeat_or_values_can_grow(
    source: str, meters: list[str]
) -> None:
    assert sorted(meters_in(source)) == sorted(meters)


def test_a_turn_is_charged_for_its_constant_text() -> None:
    tree = Environment().parse("{% for a in b %}12345{{ a }}678{% endfor %}")
    (turn,) = tree.find_all(nodes.Call)
    assert turn.args == [nodes.Const(8)]
