"""The operator's commands: what they print, and the status they end with."""

import json
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from fleet import services
from fleet.management.commands import load as load_command
from fleet.models import Demand, Desired, ModelProfile, Neuron, Placement
from fleet.token_vault import decrypt_token
from neuron_agent.protocol import ErrorCode
from tests.fakes.neuron import FakeNeuron, Refusal
from tests.fleet.conftest import Driver, live, neuron_row, placements
from tests.world import BEAST, LARGE, PUNY, SMALL, Clock


class PresentClock(Clock):
    def __call__(self) -> datetime:
        return timezone.now()


@pytest.fixture
def present(fleet: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Commands look at the real clock; and while one waits, the fleet goes on."""
    fleet.world.clock = PresentClock()
    monkeypatch.setattr(load_command, "sleep", lambda seconds: fleet.step())
    return fleet


def run(*arguments: str, **options: Any) -> str:
    out = StringIO()
    call_command(*arguments, stdout=out, stderr=StringIO(), **options)
    return out.getvalue()


def test_load_waits_until_the_model_is_ready(present: Driver) -> None:
    assert run("load", SMALL, "--wait") == f"{SMALL} is ready on {BEAST}.\n"
    assert json.loads(run("load", SMALL, "--wait", "--json")) == {
        "model": SMALL,
        "phase": "ready",
        "neuron": BEAST,
    }


def test_load_goes_where_it_is_told(present: Driver) -> None:
    assert PUNY in run("load", SMALL, "--on", PUNY, "--wait")
    assert live(SMALL) == [(PUNY, "ready")]


def test_load_without_wait_only_asks(present: Driver) -> None:
    assert "Asked" in run("load", SMALL)
    assert Demand.objects.get().source == "operator"


def test_a_load_that_fails_says_why(present: Driver) -> None:
    present.world.puny.knobs.refuse_load = Refusal(422, ErrorCode.EMPTY_REPO, "no weights there")
    with pytest.raises(CommandError, match="no weights there"):
        run("load", SMALL, "--on", PUNY, "--wait")


def test_a_load_that_fits_nowhere_says_why(present: Driver) -> None:
    ModelProfile.objects.filter(model_id=LARGE).update(vram_mb=100_000)
    with pytest.raises(CommandError, match="device_too_small"):
        run("load", LARGE, "--wait")


def test_a_load_that_takes_too_long_is_given_up_by_the_command_only(present: Driver) -> None:
    with pytest.raises(CommandError, match="not ready after 0 s"):
        run("load", SMALL, "--wait", "--timeout", "0")
    assert Demand.objects.exists()


@pytest.mark.parametrize("command", ["load", "unload", "explain"])
def test_an_unknown_model_is_an_error(db: None, command: str) -> None:
    with pytest.raises(CommandError, match="no model 'org/nobody'"):
        run(command, "org/nobody")


def test_unload(present: Driver) -> None:
    run("load", SMALL, "--wait")
    with pytest.raises(CommandError, match="not loaded on puny"):
        run("unload", SMALL, "--on", PUNY)
    assert "1 placement" in run("unload", SMALL)
    assert placements(SMALL)[0].desired == Desired.ABSENT


def test_models_lists_the_catalogue(present: Driver) -> None:
    run("load", SMALL, "--wait")
    text = run("models")
    assert f"ready on {BEAST}" in text
    assert "3,000 MB" in text
    by_id = {entry["id"]: entry for entry in json.loads(run("models", "--json"))}
    assert by_id[LARGE]["placements"] == []
    assert by_id[LARGE]["feasible_on"] == [BEAST]
    assert by_id[SMALL]["placements"][0]["neuron"] == BEAST


def test_an_empty_catalogue(db: None) -> None:
    assert "empty" in run("models")
    assert json.loads(run("models", "--json")) == []


def test_a_dry_run_says_the_plan_and_changes_nothing(present: Driver) -> None:
    present.poll()
    services.request_load(SMALL, None, timezone.now())
    text = run("reconcile", "--dry-run")
    assert text.startswith(f"load {SMALL} on {BEAST}, device ")
    assert not Placement.objects.exists()


def test_reconcile_polls_and_does_it(present: Driver) -> None:
    services.request_load(SMALL, None, timezone.now())
    told = json.loads(run("reconcile", "--json"))
    assert told["done"]
    assert len(told["plan"]) == 1
    assert live(SMALL) == [(BEAST, "loading")]


def test_reconcile_with_nothing_to_do(present: Driver) -> None:
    assert run("reconcile") == "Nothing to do.\n"


def test_explain_says_where_and_why_not_elsewhere(present: Driver) -> None:
    present.poll()
    text = run("explain", LARGE)
    assert f"another copy: on {BEAST}, device 0" in text
    assert f"not {PUNY}: device_too_small" in text
    explanation = json.loads(run("explain", LARGE, "--json"))
    assert explanation["chosen_neuron"] == BEAST
    assert explanation["refusals"][0]["code"] == "device_too_small"


def test_explain_names_who_would_have_to_go(present: Driver) -> None:
    present.world.beast.knobs.device_memory_mb = (8_000,)
    ModelProfile.objects.filter(model_id=SMALL).update(vram_mb=6_000)
    run("load", SMALL, "--wait")
    Placement.objects.update(ready_at=timezone.now() - timezone.timedelta(minutes=5))
    assert f"displaces: {SMALL} on {BEAST}" in run("explain", LARGE)


@pytest.fixture
def token_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "token"
        path.write_text(text)
        return str(path)

    return write


def test_add_neuron_says_what_it_found(db: None, token_file: Callable[[str], str]) -> None:
    with FakeNeuron(device_memory_mb=(100, 200), token="s3cret") as neuron:
        neuron.place("org/there")
        text = run("add_neuron", "third", neuron.url, "--token-file", token_file("s3cret\n"))
    assert "device 1: Fake device 1 (cuda), 200 MB" in text
    assert "has org/there: ready" in text
    row = neuron_row("third")
    assert row.phase == "healthy"
    assert decrypt_token(row.token_encrypted) == "s3cret"
    assert live("org/there") == [("third", "ready")]


def test_a_neuron_that_does_not_answer_is_not_added_but_by_force(db: None) -> None:
    with FakeNeuron() as neuron:
        neuron.stop()
        with pytest.raises(CommandError, match="does not answer"):
            run("add_neuron", "third", neuron.url)
        assert not Neuron.objects.exists()
        assert "silent" in run("add_neuron", "third", neuron.url, "--force")
    assert neuron_row("third").phase == "unknown"


def test_a_wrong_token_is_told(db: None, token_file: Callable[[str], str]) -> None:
    with FakeNeuron(token="s3cret") as neuron, pytest.raises(CommandError, match="wrong token"):
        run("add_neuron", "third", neuron.url, "--token-file", token_file("guess"))


def test_a_token_file_that_is_empty_or_missing_is_an_error(
    db: None, token_file: Callable[[str], str], tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match="is empty"):
        run("add_neuron", "x", "http://127.0.0.1:1", "--token-file", token_file("\n"))
    with pytest.raises(CommandError, match="cannot be read"):
        run("add_neuron", "x", "http://127.0.0.1:1", "--token-file", str(tmp_path / "none"))
