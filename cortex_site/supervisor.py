"""Runs a handful of processes in one terminal: start, prefix their output, restart, stop.

It knows commands and exit codes, not what the processes do. Each child gets a session of its own,
so that Ctrl-C reaches this process alone and the order of stopping is ours; and each gets SIGTERM
from the kernel if this process dies without saying goodbye.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 15.0
STEADY_SECONDS = 30.0
"""A process that lived this long starts anew with the first backoff."""
STOP_SECONDS = 8.0
LAST_WORDS_SECONDS = 0.2
"""How long we go on reading after a process has ended."""
MAX_LINE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1
_COLOURS = (36, 33, 32, 35, 34, 31, 96, 93)


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running. `stops_last` is for what the others need to stop well."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stops_last: bool = False


def _die_with_parent() -> None:
    """Runs in the child before exec: ask the kernel for SIGTERM when the parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def restart_delay(lived_seconds: float, previous_seconds: float | None) -> float:
    """How long to wait before a process that lived so long is started again; doubles."""
    if previous_seconds is None or lived_seconds >= STEADY_SECONDS:
        return FIRST_BACKOFF_SECONDS
    return min(MAX_BACKOFF_SECONDS, previous_seconds * 2)


class Supervisor:
    """Keeps its programs running between `start` and `stop`."""

    def __init__(self, write: Callable[[str], None], coloured: bool = False) -> None:
        self._write = write
        self._coloured = coloured
        self._stopping = False
        self._programs: list[Program] = []
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, program: Program) -> None:
        """Keep `program` running from now on."""
        self._programs.append(program)
        colour = _COLOURS[(len(self._programs) - 1) % len(_COLOURS)]
        self._tasks[program.name] = asyncio.create_task(
            self._keep_running(program, self._prefix(program.name, colour))
        )

    async def stop(self) -> None:
        """End every process: SIGTERM first, SIGKILL to those that do not obey in time."""
        self._stopping = True
        for last in (False, True):
            names = [program.name for program in self._programs if program.stops_last is last]
            await asyncio.gather(*(self._stop_one(name) for name in names))

    async def _stop_one(self, name: str) -> None:
        task, process = self._tasks[name], self._processes.get(name)
        if process is not None and process.returncode is None:
            _signal(process, signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.shield(process.wait()), STOP_SECONDS)
            except TimeoutError:
                self._write(f"{name} did not stop in {STOP_SECONDS:.0f} s: killed")
                _signal(process, signal.SIGKILL)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _keep_running(self, program: Program, prefix: str) -> None:
        delay: float | None = None
        while not self._stopping:
            began = time.monotonic()
            try:
                ending = _ending(await self._run_once(program, prefix))
            except OSError as error:
                ending = f"an error: {error}"
            if self._stopping:
                return
            delay = restart_delay(time.monotonic() - began, delay)
            self._write(f"{prefix}ended with {ending}; starts again in {delay:g} s")
            await asyncio.sleep(delay)

    async def _run_once(self, program: Program, prefix: str) -> int:
        # A pipe of our own: a grandchild may hold it open after the process itself has ended,
        # and asyncio would then wait for the grandchild.
        read_end, write_end = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *program.command,
                env={**os.environ, **program.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._processes[program.name] = process
        self._write(f"{prefix}started, process {process.pid}")
        copying = asyncio.create_task(self._copy_output(read_end, prefix))
        try:
            code = await process.wait()
            await asyncio.wait({copying}, timeout=LAST_WORDS_SECONDS)
            return code
        finally:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
                await process.wait()
            copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await copying

    async def _copy_output(self, read_end: int, prefix: str) -> None:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            while line := await _read_line(reader):
                self._write(prefix + line.rstrip("\n"))
        finally:
            transport.close()

    def _prefix(self, name: str, colour: int) -> str:
        text = f"{name:<8} | "
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text


async def _read_line(reader: asyncio.StreamReader) -> str:
    """The next line with its newline; empty at the end."""
    try:
        return (await reader.readline()).decode(errors="replace")
    except ValueError:  # longer than the limit: the reader has dropped it
        return "(a line too long to show)\n"


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number) if number is signal.SIGKILL else process.send_signal(number)


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def write_line(line: str) -> None:
    """Write one line to the terminal, at once; a terminal that is gone is nobody's error."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
