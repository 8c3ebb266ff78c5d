"""Claude Code, Codex and opencode: a plain turn, an aborted one, and one with a tool."""

import json
import time
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from tests.clients.command_lines import COMMAND_LINES, ClaudeCode, CommandLine, Errand
from tests.clients.held_device import held
from tests.clients.programs import CLOSED_PORT, run, running
from tests.clients.stage import DEMO_MODEL, Demo, Scripted, aborted
from tests.fakes.scripted_reply import ScriptedReply
from tests.inference.world import MODEL

CONTEXT_SECONDS = 3.0
FACTS = ("The harbour gate opens at seven.", "It closes at nine.")

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
            await program.reaches(reached.exists)
            await program.interrupted()


@each_client
async def test_a_tool_turn_takes_two_requests(
    client: CommandLine, scripted: Scripted, folder: Path, home: Path, outside: str
) -> None:
    files = [folder / f"fact{number}.txt" for number in range(len(FACTS))]
    for file, fact in zip(files, FACTS, strict=True):
        file.write_text(fact)
    calls = tuple(client.reading(file) for file in files)
    calling = ScriptedReply("Let me look.", "It must be written.", calls)
    scripted.neuron.knobs.script = [calling, ScriptedReply("It opens at seven.")]
    errand = Errand(scripted.url, MODEL, "When does the gate open?", folder, home)

    outcome = await run(client.call(errand), outside)

    assert client.said(outcome.output).endswith("It opens at seven.")
    _, second = scripted.tool_requests()
    *_, asked, first_told, second_told = second["messages"]
    assert asked["role"] == "assistant"
    assert asked["content"] == "Let me look."
    assert asked["reasoning_content"] == "It must be written."
    # A client that carries out both at once may tell first what was done first.
    told = {message["tool_call_id"]: message for message in (first_told, second_told)}
    for call, fact in zip(asked["tool_calls"], FACTS, strict=True):
        assert told[call["id"]]["role"] == "tool"
        assert fact in str(told[call["id"]]["content"])


@each_client
async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    client: CommandLine, scripted: Scripted, folder: Path, home: Path, outside: str
) -> None:
    knobs, records = scripted.neuron.knobs, scripted.gateway.port.records
    knobs.drop_connection_after_tokens = 3
    errand = Errand(scripted.url, MODEL, "Say something.", folder, home, is_small=True)
    async with running(client.call(errand), outside) as program:
        await program.reaches(lambda: records)
        knobs.drop_connection_after_tokens = None
        outcome = await program.ended()
    assert records[0].status == 502
    if client.asks_again:
        assert client.said(outcome.output) == "".join(f"word{n} " for n in range(8))
    else:
        assert outcome.status != 0
        assert "The neuron broke off its answer." in outcome.output


async def test_claude_code_finds_the_models_with_a_name_it_takes(
    scripted: Scripted, folder: Path, home: Path
) -> None:
    scripted.gateway.show(replace(scripted.gateway.port.view, aliases={"claude-harbour": MODEL}))
    scripted.neuron.knobs.first_token_delay_seconds = inf
    call = ClaudeCode().call(Errand(scripted.url, "claude-harbour", "Say something.", folder, home))
    environment = {**call.environment, "CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY": "1"}
    # Discovery counts as nonessential: here it would ask elsewhere too, and finds a closed door.
    del environment["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"]
    found = home / ".claude" / "cache" / "gateway-models.json"
    async with running(replace(call, environment=environment), CLOSED_PORT) as program:
        await program.reaches(found.exists)
        scripted.neuron.knobs.first_token_delay_seconds = 0.0
        outcome = await program.ended()
    assert ClaudeCode().said(outcome.output).startswith("word0")
    assert [model["id"] for model in json.loads(found.read_text())["models"]] == ["claude-harbour"]


async def test_claude_code_shows_its_context_quickly(
    demo: Demo, folder: Path, home: Path, outside: str
) -> None:
    errand = Errand(demo.url, DEMO_MODEL, "/context", folder, home)
    outcome = await run(ClaudeCode().call(errand), outside)
    assert "System prompt" in ClaudeCode().said(outcome.output)
    assert json.loads(outcome.output)["duration_ms"] < CONTEXT_SECONDS * 1000, outcome
