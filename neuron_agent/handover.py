"""What one life of the neuron leaves to the next, which takes its place in the same process.

The listening socket goes along, so that callers wait for a moment instead of being refused, and the
models that were loaded. It travels in an environment variable, which the next life takes out before
anything else is started. It decides nothing and starts nothing but the program itself.
"""

import os
import socket
import sys
from collections.abc import Mapping
from typing import NoReturn

import msgspec

from neuron_agent.config import NeuronConfig
from neuron_agent.protocol import LoadRequest

VARIABLE = "CORTEX_NEURON_HANDOVER"


class Handover(msgspec.Struct, frozen=True):
    listener_fd: int
    models: tuple[LoadRequest, ...]


def take_handover(environment: dict[str, str]) -> Handover | None:
    """Take what an earlier life left out of the environment; None if there was none."""
    text = environment.pop(VARIABLE, None)
    try:
        return None if text is None else msgspec.json.decode(text, type=Handover)
    except msgspec.DecodeError:
        return None


def inherited_listener(handover: Handover, config: NeuronConfig) -> socket.socket | None:
    """Return the earlier life's socket if it listens where the configuration says now."""
    try:
        listener = socket.socket(fileno=handover.listener_fd)
    except OSError:
        return None
    host, port = listener.getsockname()[:2]
    if host == config.host and config.port in (0, port):
        os.set_inheritable(listener.fileno(), False)
        return listener
    listener.close()
    return None


def begin_next_life(
    listener: socket.socket, models: tuple[LoadRequest, ...], environment: Mapping[str, str]
) -> NoReturn:
    """Become the program anew, by the command line this process was started with."""
    os.set_inheritable(listener.fileno(), True)
    text = msgspec.json.encode(Handover(listener.fileno(), models)).decode()
    os.execve(sys.executable, sys.orig_argv, {**environment, VARIABLE: text})
