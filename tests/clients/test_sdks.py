"""The SDKs for Python and node: a plain turn, an aborted one, and one with a tool."""

from pathlib import Path

import pytest

from neuron_agent.demo.texts import CONVERSATIONS
from tests.clients.held_device import held
from tests.clients.sdks import FACT, SDKS, TOOL_NAME, TOOL_RUNNERS, Errand, Sdk, ToolRunner
from tests.clients.stage import DEMO_MODEL, Demo, Scripted, aborted
from tests.fakes.scripted_reply import ScriptedCall, ScriptedReply
from tests.inference.world import MODEL

COUNTING = next(talk for talk in CONVERSATIONS if talk.name == "count")
PROMPT = COUNTING.messages[0]["content"]

each_sdk = pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)


@each_sdk
async def test_a_plain_turn_is_the_same_at_once_and_streamed(
    sdk: Sdk, demo: Demo, home: Path, outside: str
) -> None:
    errand = Errand(demo.url, DEMO_MODEL, PROMPT, home, outside)
    assert await sdk.say(errand) == [COUNTING.reply, COUNTING.reply]


@each_sdk
async def test_a_client_that_leaves_in_mid_answer_leaves_nothing_behind(
    sdk: Sdk, demo: Demo, home: Path, outside: str
) -> None:
    errand = Errand(demo.url, DEMO_MODEL, PROMPT, home, outside)
    with aborted(demo), held(demo.hold):
        await sdk.leave(errand)


def script_a_tool_turn(scripted: Scripted) -> None:
    look_up = ScriptedCall(TOOL_NAME, {"topic": "the gate"})
    calling = ScriptedReply("Let me look.", "It must be written.", (look_up,))
    scripted.neuron.knobs.script = [calling, ScriptedReply("It opens at seven.")]


def check_the_second_request(scripted: Scripted) -> None:
    """The neuron was told what it had said, and what came of it."""
    _, second = scripted.tool_requests()
    *_, asked, told = second["messages"]
    assert (asked["role"], asked["content"]) == ("assistant", "Let me look.")
    assert [call["function"]["name"] for call in asked["tool_calls"]] == [TOOL_NAME]
    assert told["role"] == "tool"
    assert FACT in str(told["content"])
    assert told["tool_call_id"] == asked["tool_calls"][0]["id"]


@each_sdk
async def test_a_tool_turn_takes_two_requests(
    sdk: Sdk, scripted: Scripted, home: Path, outside: str
) -> None:
    script_a_tool_turn(scripted)
    errand = Errand(scripted.url, MODEL, "When does the gate open?", home, outside)
    assert await sdk.use_tool(errand) == "It opens at seven."
    check_the_second_request(scripted)


@pytest.mark.parametrize("runner", TOOL_RUNNERS, ids=lambda runner: runner.name)
async def test_a_loop_over_a_thread_on_the_server_goes_on_without_one(
    runner: ToolRunner, scripted: Scripted, home: Path, outside: str
) -> None:
    script_a_tool_turn(scripted)
    errand = Errand(scripted.url, MODEL, "When does the gate open?", home, outside)
    assert await runner.run_tools(errand) == "It opens at seven."
    check_the_second_request(scripted)
