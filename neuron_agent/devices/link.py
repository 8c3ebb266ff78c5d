"""The front's end of one device process: start it, write to it, read from it, end it.

The process runs in a session of its own with stdin closed, and one end of a socket pair as its
only tie: when the front is gone, however it ended, the process reads end-of-file and exits. This
module knows the channel's framing and nothing of what the messages mean.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec

from neuron_agent.devices.channel import (
    ChannelError,
    Command,
    DeviceReport,
    FrameSplitter,
    Shutdown,
    decode_report,
    encode,
)
from neuron_agent.devices.inventory import MEGABYTE, DeviceSpec

_READ_BYTES = 256 * 1024
_REAP_SECONDS = 5.0
"""How long a killed process may take to vanish; one stuck in its driver is left behind."""


class DeviceLink:
    """A running device process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._splitter = FrameSplitter()
        self._received: deque[DeviceReport] = deque()

    @classmethod
    async def start(
        cls, command: Sequence[str], spec: DeviceSpec, environment: Mapping[str, str]
    ) -> Self:
        """Start a device process. Raises OSError if the command cannot be run."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *_arguments(theirs.fileno(), spec),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                    env=_environment(spec, environment),
                )
            except OSError:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, command: Command) -> None:
        """Hand a command over; to a process that is gone it goes nowhere, as its end will tell."""
        if not self._writer.is_closing():
            self._writer.write(encode(command))

    async def receive(self) -> DeviceReport | None:
        """Return the next report; None when the process has closed its end.

        Raises ChannelError if what came is no report. Cancelling it loses nothing.
        """
        while not self._received:
            try:
                data = await self._reader.read(_READ_BYTES)
            except ConnectionError:
                return None
            if not data:
                return None
            try:
                self._received.extend(decode_report(body) for body in self._splitter.feed(data))
            except msgspec.MsgspecError as error:
                raise ChannelError(f"the device process sent nonsense: {error}") from error
        return self._received.popleft()

    async def stop(self, grace_seconds: float) -> None:
        """Ask the process to end, and kill it if it has not after `grace_seconds`."""
        self.send(Shutdown())
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace_seconds)
        await self.kill()

    async def kill(self) -> int | None:
        """End the process now. Return its exit status, or None if even that did not end it."""
        self._writer.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), _REAP_SECONDS)
        return self._process.returncode


def _arguments(fd: int, spec: DeviceSpec) -> list[str]:
    if spec.facts.kind == "cuda":
        # It sees one GPU, and to it that one is the first.
        return ["--fd", str(fd), "--device", "cuda:0", "--index", str(spec.facts.index)]
    memory_mb = spec.memory_total_bytes // MEGABYTE
    budget = ["--memory-mb", str(memory_mb), "--threads", str(spec.threads)]
    return ["--fd", str(fd), "--device", spec.torch_name, *budget]


def _environment(spec: DeviceSpec, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment: it sees its own GPU and no other, on a CPU device none."""
    return {**environment, "CUDA_VISIBLE_DEVICES": spec.uuid or ""}
