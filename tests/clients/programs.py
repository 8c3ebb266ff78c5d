"""Runs a client's program as its user would, alone with one address.

Each has a home of its own, an environment with nothing in it but what is given, and a process group
that is gone at the end. It knows no client by name.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
PROGRAMS = FOLDER / "node_modules" / ".bin"
PATIENCE_SECONDS = 90.0
LOOK_SECONDS = 0.01
PRESS_AGAIN_SECONDS = 5.0
CLOSED_PORT = "http://127.0.0.1:9"


@dataclass(frozen=True, slots=True)
class Call:
    """A command line, what it needs in its environment, and where it runs."""

    command: tuple[str, ...]
    folder: Path
    home: Path
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    output: str
    errors: str


class Program:
    """A program that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def interrupted(self) -> Outcome:
        """Press Ctrl-C, again and again as people do, until it ends. Raises TimeoutError.

        A terminal tells all of its foreground processes.
        """
        ending = asyncio.create_task(self.ended())
        while not ending.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)
            await asyncio.wait([ending], timeout=PRESS_AGAIN_SECONDS)
        return ending.result()

    async def reaches(self, condition: Callable[[], object]) -> None:
        """Wait until a condition holds, which must be while the program runs.

        Raises AssertionError, TimeoutError.
        """
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                assert self._process.returncode is None, await self.ended()
                await asyncio.sleep(LOOK_SECONDS)

    async def ended(self) -> Outcome:
        """Wait for its end. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            output, errors = await self._process.communicate()
        status = self._process.returncode
        assert status is not None
        return Outcome(status, output.decode(), errors.decode())


@contextlib.asynccontextmanager
async def running(call: Call, outside: str) -> AsyncIterator[Program]:
    """Start a program; at the end nothing of it is left. `outside` is the proxy to elsewhere."""
    process = await asyncio.create_subprocess_exec(
        *call.command,
        cwd=call.folder,
        env={**_environment(call.home, outside), **call.environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield Program(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def run(call: Call, outside: str) -> Outcome:
    """Run a program to its end, which must be a good one."""
    async with running(call, outside) as program:
        outcome = await program.ended()
    assert outcome.status == 0, outcome
    return outcome


def node_script(name: str, *arguments: str, home: Path) -> Call:
    """Return the call of a script beside the installed clients."""
    node = shutil.which("node")
    assert node is not None
    return Call((node, str(FOLDER / "node" / name), *arguments), home, home, {})


def as_command(name: str, arguments: Sequence[str]) -> tuple[str, ...]:
    return (str(PROGRAMS / name), *arguments)


def _environment(home: Path, outside: str) -> dict[str, str]:
    """Return what every program gets: whatever is not on this machine goes through `outside`."""
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), outside)
    return {
        **proxies,
        **{name.lower(): value for name, value in proxies.items()},
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "npm_config_registry": CLOSED_PORT,
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
    }
