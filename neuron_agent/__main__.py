"""`python -m neuron_agent`: read the configuration, open the port, serve until told to stop.

The port is opened before anything else, so that a busy one is a clear line and exit status 2, and
is never closed while a device process is replaced, nor when the whole neuron restarts. The front
process sees no GPU: it hides them from itself before any library could look.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from neuron_agent.config import ConfigError, NeuronConfig, load_config
from neuron_agent.devices.inventory import take_inventory
from neuron_agent.handover import begin_next_life, inherited_listener, take_handover
from neuron_agent.http_answer import STALLED_SECONDS
from neuron_agent.protocol import LoadRequest
from neuron_agent.server import build_app
from neuron_agent.supervisor import Supervisor

EXIT_CANNOT_START = 2
SHUTDOWN_SECONDS = 3
KEEP_ALIVE_SECONDS = 75
"""A gateway keeps connections in a pool; they should not close under a request it just sent."""
LOCAL_PROXIES = ["127.0.0.1", "::1"]
LAST_REQUESTS_SECONDS = 0.2
"""How long before a restart connections that were accepted may still ask, and get their answer."""
_BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class _End:
    """How a life ended: whether another one follows, and what it should load."""

    restarts: bool
    models: tuple[LoadRequest, ...]


class _Server(uvicorn.Server):
    """uvicorn, with the signals left to us: a stop must end the device processes first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main() -> int:
    arguments = _parse_arguments()
    environment = dict(os.environ)
    handover = take_handover(environment)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # Texts come one at a time; the library's own threads would only be in the way of a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        config = _configure(arguments, environment)
        listener = (handover and inherited_listener(handover, config)) or _listen(config)
    except ConfigError as error:
        print(f"neuron: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CANNOT_START
    _set_up_logging(config)
    models = handover.models if handover else config.default_models
    spare = listener.dup()  # serving closes the other one; for the next life this one stays open
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        ended = runner.run(_serve(config, listener, environment, models))
        # A download in a thread cannot be cancelled and would hold the exit up for hours. It is
        # resumed by the next start; device processes are gone by now.
        sys.stdout.flush()
        sys.stderr.flush()
        if ended.restarts:
            begin_next_life(spare, ended.models, environment)
        os._exit(0)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="neuron_agent", description="Serve models from this host")
    parser.add_argument("--config", type=Path, help="neuron.toml")
    parser.add_argument("--host")
    parser.add_argument("--port")
    return parser.parse_args()


def _configure(arguments: argparse.Namespace, environment: Mapping[str, str]) -> NeuronConfig:
    """Return the configuration; the command line wins over the environment."""
    given = {"NEURON_HOST": arguments.host, "NEURON_PORT": arguments.port}
    chosen = {name: value for name, value in given.items() if value is not None}
    return load_config(arguments.config, {**environment, **chosen})


def _listen(config: NeuronConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        # For connections too: closing one whose client reads nothing would wait for it for ever.
        milliseconds = int(STALLED_SECONDS * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listener.bind((config.host, config.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        place = f"{config.host}:{config.port}"
        raise ConfigError(f"cannot listen on {place}: {error.strerror}") from error
    return listener


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


async def _serve(
    config: NeuronConfig,
    listener: socket.socket,
    environment: Mapping[str, str],
    models: Sequence[str | LoadRequest],
) -> _End:
    """Serve until SIGTERM, SIGINT or a restart; then end streams and devices side by side."""
    supervisor = Supervisor(config, take_inventory(config.devices, environment), environment)
    server = _Server(server_config(build_app(supervisor)))
    stop_asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop_asked.set)
    supervisor.start(models)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()[:2]
    print(f"neuron listening on http://{host}:{port}", flush=True)  # noqa: T201
    stopping = asyncio.create_task(stop_asked.wait())
    restarting = asyncio.create_task(supervisor.is_drained.wait())
    await asyncio.wait({serving, stopping, restarting}, return_when=asyncio.FIRST_COMPLETED)
    wanted = supervisor.wanted_models
    if supervisor.is_drained.is_set():
        await _stop_accepting(server)
    server.should_exit = True
    await asyncio.gather(serving, supervisor.stop(), return_exceptions=True)
    return _End(supervisor.is_drained.is_set() and not stop_asked.is_set(), wanted)


async def _stop_accepting(server: uvicorn.Server) -> None:
    """Leave new connections to the next life, and answer what the accepted ones have just sent."""
    for listening in server.servers:
        listening.close()
    await asyncio.sleep(LAST_REQUESTS_SECONDS)


def server_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Said here, for else a variable of the environment says whom to believe, and whoever may
        # name the caller's address passes for a caller of this host and needs no token.
        forwarded_allow_ips=LOCAL_PROXIES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _set_up_logging(config: NeuronConfig) -> None:
    """Send log lines to stderr, as text for people or JSON for machines."""
    level = getattr(logging, config.log_level.upper())
    renderer: structlog.typing.Processor
    if config.log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The others show local variables: prompts would stand in the log.
            exception_formatter=structlog.dev.plain_traceback,
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")


if __name__ == "__main__":
    sys.exit(main())
