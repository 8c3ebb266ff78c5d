"""The tools of a request by name, and what is known of their arguments."""

from typing import Any

import pytest

from neuron_agent.text.calls import Tools
from tests.neuron_agent.text.outputs import PARAMETERS, TOOLS


def test_tools_are_known_by_name() -> None:
    assert Tools.of(TOOLS).schemas == {"get_weather": PARAMETERS, "ping": {}}


@pytest.mark.parametrize(
    ("tool", "name", "schema"),
    [
        ("get_weather", "days", {"type": "integer"}),
        ("get_weather", "unknown", None),
        ("ping", "days", None),
        ("unknown", "days", None),
    ],
)
def test_an_argument_has_the_schema_its_tool_gives_it(tool: str, name: str, schema: Any) -> None:
    assert Tools.of(TOOLS).property_schema(tool, name) == schema


@pytest.mark.parametrize("tool", [{}, {"function": None}, {"function": {"parameters": [1]}}])
def test_tools_without_a_usable_schema_do_no_harm(tool: dict[str, Any]) -> None:
    assert all(schema == {} for schema in Tools.of([tool]).schemas.values())
