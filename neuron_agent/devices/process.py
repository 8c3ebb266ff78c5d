"""Entry point of a device process: the pipe on the main thread, the device thread beside it.

    python -m neuron_agent.devices.process --fd 3 --device cpu:0 --memory-mb 400 --threads 2

`--fd` is this process's end of a socket pair. The main thread reads commands from it and posts
them to the device thread's mailbox, and does nothing else. When the parent is gone, the process
ends at once, in the middle of a step if need be: nobody is left to want its result.
"""

import os

# Read by OpenMP when torch is loaded, below: waiting threads sleep instead of spinning, which
# costs little alone and saves a factor of three when a neighbour is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import ctypes
import queue
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from neuron_agent.devices.channel import (
    ChannelError,
    Command,
    DeviceReport,
    FrameSplitter,
    decode_command,
    encode,
)
from neuron_agent.devices.worker import Worker
from neuron_agent.engine.device import TorchDevice

SWITCH_INTERVAL_SECONDS = 5e-5
"""How long the reading thread may keep the interpreter: at the usual 5 ms a step takes 1.7 times
as long beside a busy reader."""

RECEIVE_BYTES = 1 << 16
PR_SET_PDEATHSIG = 1

EXIT_DEVICE_THREAD_DIED = 3
EXIT_BAD_COMMANDS = 4


@dataclass(frozen=True, slots=True)
class Options:
    fd: int
    kind: str  # "cpu" or "cuda"
    ordinal: int
    index: int
    memory_bytes: int | None
    num_threads: int | None

    @property
    def thread_name(self) -> str:
        return f"{self.kind}-dev-{self.index}"

    @property
    def torch_device(self) -> torch.device:
        # Several CPU devices are one place to torch; they differ in their process and budget.
        return torch.device("cuda", self.ordinal) if self.kind == "cuda" else torch.device("cpu")


def parse_options(arguments: Sequence[str]) -> Options:
    """Parse the command line; exits with a message on nonsense."""
    parser = argparse.ArgumentParser(prog="neuron_agent.devices.process")
    parser.add_argument("--fd", type=int, required=True, help="this end of the socket pair")
    parser.add_argument("--device", required=True, help="cpu:N or cuda:N")
    parser.add_argument("--index", type=int, help="its number on this host; N if not given")
    parser.add_argument("--memory-mb", type=int, help="memory budget of the device")
    parser.add_argument("--threads", type=int, help="threads that torch computes with")
    parsed = parser.parse_args(arguments)
    named = re.fullmatch(r"(cpu|cuda):(\d+)", parsed.device)
    if named is None:
        parser.error(f"--device must be cpu:N or cuda:N, not {parsed.device!r}")
    for name in ("memory_mb", "threads"):
        if getattr(parsed, name) is not None and getattr(parsed, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    memory_bytes = None if parsed.memory_mb is None else parsed.memory_mb * 2**20
    ordinal = int(named[2])
    index = ordinal if parsed.index is None else parsed.index
    return Options(parsed.fd, named[1], ordinal, index, memory_bytes, parsed.threads)


def main() -> None:
    options = parse_options(sys.argv[1:])
    _die_with_parent()
    # A terminal's Ctrl-C goes to the whole group; ending in good order is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    _configure_log()
    channel = socket.socket(fileno=options.fd)
    mailbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(
        target=_own_device, args=(options, mailbox, channel), name=options.thread_name, daemon=True
    ).start()
    _post_commands(channel, mailbox)


def _post_commands(channel: socket.socket, mailbox: queue.SimpleQueue[Command]) -> None:
    """Read for ever. A parent that is gone, or talks nonsense, ends the process."""
    frames = FrameSplitter()
    while data := _receive(channel):
        try:
            commands = [decode_command(body) for body in frames.feed(data)]
        except (ChannelError, ValueError) as error:
            structlog.get_logger(__name__).error("bad_command", error=str(error))
            os._exit(EXIT_BAD_COMMANDS)
        for command in commands:
            mailbox.put(command)
    os._exit(0)


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(RECEIVE_BYTES)
    except OSError:
        return b""


def _own_device(
    options: Options, mailbox: queue.SimpleQueue[Command], channel: socket.socket
) -> None:
    """Body of the device thread. When it ends, the process does: it has nothing else to do.

    `os._exit` spares the interpreter's own ending, which would free a whole model first.
    """
    _name_thread(options.thread_name)
    sending = threading.Lock()  # a load's progress comes from a thread of its own

    def send(report: DeviceReport) -> None:
        frame = encode(report)
        with sending:
            channel.sendall(frame)

    device = TorchDevice(
        options.torch_device,
        memory_bytes=options.memory_bytes,
        num_threads=options.num_threads,
        clock=time.monotonic,
    )
    try:
        Worker(device, mailbox, send, time.monotonic).run()
    except BaseException:
        # The top of the thread: say why, and be seen to die.
        structlog.get_logger(__name__).exception("device_thread_died")
        os._exit(EXIT_DEVICE_THREAD_DIED)
    os._exit(0)


def _configure_log() -> None:
    """Log to stderr. Tracebacks are plain: those with local variables would show prompts."""
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(
                colors=False, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
    )


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while no thread reads."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _name_thread(name: str) -> None:
    """Give the calling thread its name in the operating system too, where `top -H` shows it."""
    if sys.platform == "linux":
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)


if __name__ == "__main__":
    main()
