import asyncio
import os
import signal
import sys

import pytest

from cortex_site import supervisor
from cortex_site.supervisor import FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, Program, Supervisor


def python(program: str) -> list[str]:
    return [sys.executable, "-uc", program]


class Terminal:
    """Collects lines and lets a test wait for one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._news = asyncio.Event()

    def write(self, line: str) -> None:
        self.lines.append(line)
        self._news.set()

    async def line_with(self, text: str, times: int = 1) -> str:
        async with asyncio.timeout(20):
            while sum(text in line for line in self.lines) < times:
                self._news.clear()
                await self._news.wait()
        return next(line for line in reversed(self.lines) if text in line)


@pytest.fixture
def terminal():
    return Terminal()


async def test_output_is_prefixed_by_the_name(terminal):
    running = Supervisor(terminal.write)
    running.start(Program("speaker", python("print('hello'); input()")))
    assert await terminal.line_with("hello") == "speaker  | hello"
    await running.stop()


async def test_a_process_that_dies_is_started_again(terminal, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 0.01)
    running = Supervisor(terminal.write)
    running.start(Program("mortal", python("import time; time.sleep(60)")))
    first = (await terminal.line_with("started")).split()[-1]
    os.kill(int(first), signal.SIGKILL)
    await terminal.line_with("ended with SIGKILL")
    second = (await terminal.line_with("started", times=2)).split()[-1]
    assert first != second
    await running.stop()


async def test_stop_ends_all_and_those_that_others_need_last(terminal):
    running = Supervisor(terminal.write)
    program = (
        "import signal,sys; signal.signal(15, lambda *_: (print('bye'), sys.exit())); "
        "print('up'); signal.pause()"
    )
    running.start(Program("broker", python(program), stops_last=True))
    running.start(Program("client", python(program)))
    await terminal.line_with("up", times=2)
    await running.stop()
    assert [line for line in terminal.lines if "bye" in line] == [
        "client   | bye",
        "broker   | bye",
    ]


async def test_a_process_that_does_not_obey_is_killed(terminal, monkeypatch):
    monkeypatch.setattr(supervisor, "STOP_SECONDS", 0.2)
    running = Supervisor(terminal.write)
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); print('up'); signal.pause()"
    running.start(Program("deaf", python(deaf)))
    await terminal.line_with("up")
    await running.stop()
    assert any("killed" in line for line in terminal.lines)


async def test_a_grandchild_that_keeps_the_pipe_open_does_not_hide_an_end(terminal, monkeypatch):
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 60)
    running = Supervisor(terminal.write)
    program = (
        "import subprocess,sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)']); "
        "print('grandchild', p.pid)"
    )
    running.start(Program("parent", python(program)))
    grandchild = int((await terminal.line_with("grandchild")).split()[-1])
    await terminal.line_with("ended with exit status 0")
    os.kill(grandchild, signal.SIGKILL)
    await running.stop()


def test_backoff_doubles_up_to_a_bound_and_forgets_after_a_steady_time():
    delay = supervisor.restart_delay(0.1, None)
    assert delay == FIRST_BACKOFF_SECONDS
    for _ in range(20):
        delay, previous = supervisor.restart_delay(0.1, delay), delay
        assert delay == min(MAX_BACKOFF_SECONDS, previous * 2)
    assert supervisor.restart_delay(1000, delay) == FIRST_BACKOFF_SECONDS


async def test_a_program_that_is_not_there_is_tried_again_and_says_so(terminal):
    running = Supervisor(terminal.write)
    running.start(Program("missing", ["/nowhere/program"]))
    await terminal.line_with("ended with an error")
    await running.stop()
