"""Starting and stopping the front process as an operator (or the kernel) does."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from neuron_agent.__main__ import server_config
from tests.neuron_agent.front import (
    DEADLINE_SECONDS,
    Front,
    is_running,
    read_answer,
    read_until,
    wait_until,
)
from tests.neuron_agent.tiny_model import write_model

pytestmark = pytest.mark.slow


def run_neuron(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "neuron_agent", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def test_busy_port_is_one_clear_line_and_exit_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_neuron("--port", str(port))
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        f"neuron: cannot listen on 127.0.0.1:{port}: Address already in use"
    )


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--port", "many"], {}, "port"),
        (["--host", "0.0.0.0", "--port", "0"], {}, "set a token"),
        ([], {"NEURON_PROT": "1"}, "did you mean 'port'"),
        (["--config", "/nowhere.toml"], {}, "cannot be read"),
    ],
)
def test_bad_configuration_is_one_clear_line_and_exit_status_2(
    arguments: list[str], variables: dict[str, str], message: str
) -> None:
    ended = run_neuron(*arguments, **variables)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_token_is_asked_of_nobody_on_this_host() -> None:
    with Front({"TOKEN": "secret"}) as front:
        assert front.ask("GET", "/health").status == 200


async def test_caller_cannot_name_an_address_that_needs_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    peers: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        peers.append(scope["client"][0])

    config = server_config(app)
    config.load()
    claimed = [(b"x-forwarded-for", b"127.0.0.1")]
    for peer in ("192.0.2.7", "127.0.0.1"):
        scope = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": claimed}
        await config.loaded_app(scope, None, None)  # type: ignore[arg-type]
    assert peers == ["192.0.2.7", "127.0.0.1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_ends_streams_and_device_processes(tmp_path: Path, number: signal.Signals) -> None:
    with Front({"DEVICES__CPU": "2"}) as front:
        front.load(write_model(tmp_path / "tiny"))
        devices = front.device_pids()
        with front.open_chat("FOREVER", stream=True) as sock:
            read_until(sock, b"data: ")
            front.process.send_signal(number)
            assert b'"code":"' in read_until(sock, b"\n\n\r\n0\r\n\r\n")
        assert front.process.wait(DEADLINE_SECONDS) == 0
        assert len(devices) == 2
        assert not any(map(is_running, devices))


def test_stop_while_devices_are_still_starting_leaves_none() -> None:
    sleeper = '["sh", "-c", "sleep 60 # $0"]'
    with Front({"DEVICE_COMMAND": sleeper}) as front:
        devices = wait_until(front.device_pids, "the device process is there")
    assert not any(map(is_running, devices))


def test_killed_front_leaves_no_device_process(tmp_path: Path) -> None:
    with Front({"DEVICES__CPU": "2"}) as front:
        front.load(write_model(tmp_path / "tiny"))
        devices = front.device_pids()
        assert len(devices) == 2
        front.process.kill()
        front.process.wait(DEADLINE_SECONDS)
        wait_until(lambda: not any(map(is_running, devices)), "the device processes end")


def test_restart_lets_requests_end_and_loads_what_was_loaded(tmp_path: Path) -> None:
    with Front({"DEFAULT_MODELS": "not/wanted-any-more"}) as front:
        front.unload("not/wanted-any-more")
        front.load(write_model(tmp_path / "tiny"), max_context=500)
        boot_id = front.get("/version")["boot_id"]
        devices = front.device_pids()
        sock = front.open_chat("FOREVER", stream=True, max_tokens=400)
        read_until(sock, b"data: ")
        assert front.ask("POST", "/restart", {"drain_seconds": 20}).status == 202
        assert front.ask("POST", "/restart").json["activation"] == "draining"
        assert front.get("/health")["activation"] == "draining"
        refused = front.chat()
        assert (refused.status, refused.error["code"]) == (503, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert b"[DONE]" in read_answer(sock)
        wait_until(lambda: is_another_life(front, boot_id), "another life")
        wait_until(lambda: front.phase() == "ready", "its model is loaded again")
        assert [model["id"] for model in front.get("/models")["models"]] == ["org/tiny"]
        assert front.model()["limit"]["context"] == 500
        assert front.get("/health")["activation"] == "active"
        assert front.chat().status == 200
        assert not any(map(is_running, devices))
        assert front.process.poll() is None


def test_restart_ends_what_outlasts_its_drain(tmp_path: Path) -> None:
    with Front() as front:
        front.load(write_model(tmp_path / "tiny"))
        boot_id = front.get("/version")["boot_id"]
        sock = front.open_chat("FOREVER", stream=True)
        read_until(sock, b"data: ")
        assert front.ask("POST", "/restart", {"drain_seconds": 0}).status == 202
        assert b'"code":"' in read_until(sock, b"\n\n\r\n0\r\n\r\n")
        wait_until(lambda: is_another_life(front, boot_id), "another life")
        for bad in ({"drain_seconds": -1}, {"drain_seconds": "soon"}):
            assert front.ask("POST", "/restart", bad).status == 400


def is_another_life(front: Front, boot_id: str) -> bool:
    try:
        return bool(front.get("/version")["boot_id"] != boot_id)
    except ConnectionResetError:  # accepted in the last moment of the earlier one
        return False
