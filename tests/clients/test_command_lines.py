"""Claude Code, Codex and opencode: a plain turn, an aborted one, and one with a tool."""

import time
from pathlib import Path

import pytest

from tests.clients.command_lines import COMMAND_LINES, ClaudeCode, CommandLine, Errand
from tests.clients.conftest import DEMO_MODEL, Demo, Scripted, aborted
from tests.clients.held_device import held
from tests.clients.programs import run, running
from tests.fakes.scripted_reply import ScriptedReply
from tests.inference.world import MODEL, eventually

CONTEXT_SECONDS = 3.0
FACT = "The harbour gate opens at seven."

each_client = pytest.mark.parametrize("client", COMMAND_LINES, ids=lambda client: client.name)


def demo_errand(demo: Demo, folder: Path, home: Path) -> Errand:
    return Errand(demo.url, DEMO_MODEL, "Count to one hundred.", folder, home, is_small=True)


@each_client
async def test_a_plain_turn_ends_well(
    client: CommandLine, demo: Demo, folder: Path, home: Path, outside: str
) -> None:
    began = time.time()
    outcome = await run(client.call(demo_errand(demo, folder, home)), outside)
    assert client.said(outcome.output)
    assert {record["status"] for record in demo.wait_for_records(began)} == {200}


@each_client
async def test_a_client_that_is_stopped_in_mid_answer_leaves_nothing_behind(
    client: CommandLine, demo: Demo, folder: Path, home: Path, outside: str
) -> None:
    call = client.call(demo_errand(demo, folder, home))
    with aborted(demo), held(demo.hold) as reached:
        async with running(call, outside) as program:
            await eventually(reached.exists)
            program.interrupt()
            await program.ended()


@each_client
async def test_a_tool_turn_takes_two_requests(
    client: CommandLine, scripted: Scripted, folder: Path, home: Path, outside: str
) -> None:
    fact = folder / "fact.txt"
    fact.write_text(FACT)
    calling = ScriptedReply("Let me look.", "It must be written.", (client.reading(fact),))
    scripted.neuron.knobs.script = [calling, ScriptedReply("It opens at seven.")]
    errand = Errand(scripted.url, MODEL, "When does the gate open?", folder, home)

    outcome = await run(client.call(errand), outside)

    assert client.said(outcome.output).endswith("It opens at seven.")
    _, second = scripted.tool_requests()
    *_, asked, told = second["messages"]
    assert asked["role"] == "assistant"
    assert asked["content"] == "Let me look."
    assert asked["reasoning_content"] == "It must be written."
    assert told["role"] == "tool"
    assert FACT in str(told["content"])
    assert told["tool_call_id"] == asked["tool_calls"][0]["id"]


async def test_claude_code_shows_its_context_quickly(
    demo: Demo, folder: Path, home: Path, outside: str
) -> None:
    errand = Errand(demo.url, DEMO_MODEL, "/context", folder, home)
    outcome = await run(ClaudeCode().call(errand), outside)
    assert "System prompt" in ClaudeCode().said(outcome.output)
    assert outcome.seconds < CONTEXT_SECONDS
