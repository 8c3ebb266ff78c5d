"""The other side of the comparison is installed once, wholly, and told where the stub is."""

import subprocess
from pathlib import Path
from typing import Any

import gateway_litellm
import pytest


class Installer:
    """Stands in for the programs that install: notes them, and fails where it is told to."""

    def __init__(self, failing: str = "") -> None:
        self.commands: list[list[str]] = []
        self._failing = failing

    def __call__(self, arguments: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(arguments)
        if "venv" in arguments:
            Path(arguments[-1]).mkdir(parents=True)
        failed = bool(self._failing) and self._failing in arguments
        return subprocess.CompletedProcess(arguments, int(failed), b"", b"a warning\nno network\n")


def test_it_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installer = Installer()
    monkeypatch.setattr(gateway_litellm.subprocess, "run", installer)
    programs = gateway_litellm.installed(tmp_path)
    assert [command[1:3] for command in installer.commands] == [
        ["-m", "venv"],
        ["install", "--quiet"],
    ]
    assert gateway_litellm.installed(tmp_path) == programs
    assert len(installer.commands) == 2


def test_an_installation_that_failed_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_litellm.subprocess, "run", failing := Installer("install"))
    for num_commands in (2, 4):
        with pytest.raises(gateway_litellm.CannotInstall, match=r"^no network$"):
            gateway_litellm.installed(tmp_path)
        assert len(failing.commands) == num_commands


def test_a_program_that_is_not_there_is_a_reason_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_litellm.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(gateway_litellm.CannotInstall, match="No such file"):
        gateway_litellm.installed(tmp_path)


def test_it_is_started_with_one_worker_before_the_stub(tmp_path: Path) -> None:
    command = gateway_litellm.command(Path("/venv/bin"), "http://127.0.0.1:7", tmp_path, 8)
    assert command[0] == "/venv/bin/litellm"
    assert command[command.index("--num_workers") + 1] == "1"
    assert command[command.index("--port") + 1] == "8"
    settings = Path(command[command.index("--config") + 1]).read_text()
    assert "api_base: http://127.0.0.1:7/v1" in settings


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"XDG_CACHE_HOME": "/elsewhere"}, Path("/elsewhere/cortex-bench")),
        ({}, Path.home() / ".cache/cortex-bench"),
    ],
)
def test_it_lives_in_the_users_cache(environment: dict[str, str], folder: Path) -> None:
    assert gateway_litellm.cache_folder(environment) == folder
