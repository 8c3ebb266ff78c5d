"""`manage.py up` as a user would start it, on ports and in a data folder of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.demo import demo_model_folder
from tests.servers import free_port

REPOSITORY = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 120.0
STARTED = re.compile(r"^(\w+)\s+\| started, process (\d+)$")
T = TypeVar("T")


def wait_until(probe: Callable[[], T], seconds: float = 30.0, what: str = "") -> T:
    """Call `probe` until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (result := probe()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or probe}"
        time.sleep(0.02)
    return result


class Cluster:
    """One running `up`. Its processes are known by the names its output gives them."""

    def __init__(self, data: Path, environment: Mapping[str, str]) -> None:
        self.port, self.metrics_port, self.neuron_port = free_port(), free_port(), free_port()
        self.api = f"http://127.0.0.1:{self.port}"
        self.neuron = f"http://127.0.0.1:{self.neuron_port}"
        self.environment = {
            **os.environ,
            "CORTEX_DATA": str(data),
            "CORTEX_PORT": str(self.port),
            "CORTEX_METRICS_PORT": str(self.metrics_port),
            "NEURON_PORT": str(self.neuron_port),
            **environment,
        }
        # The tests' own process has settings and metrics of its own.
        for name in ("DJANGO_SETTINGS_MODULE", "PROMETHEUS_MULTIPROC_DIR"):
            self.environment.pop(name, None)
        models = data / "models"
        models.mkdir(parents=True)
        (models / "cortex-demo").symlink_to(demo_model_folder())
        self.output: list[str] = []
        self._pids: dict[str, int] = {}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=REPOSITORY,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_ignore_interrupts,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,))
        self._reader.start()
        wait_until(self._is_ready, START_SECONDS, "Cortex is ready")

    def stop(self) -> int:
        """Press Ctrl-C; return the exit status. Nothing it started may be left."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            code = self._process.wait(25)
        except subprocess.TimeoutExpired:
            for process in family:
                process.kill()
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._reader.join(5)
        _, alive = psutil.wait_procs(family, timeout=3)
        assert not alive, f"left running: {alive}"
        return code

    def pid(self, name: str) -> int:
        """The process id of a program, as last announced."""
        return self._pids[name]

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def device_pids(self) -> list[int]:
        """The device processes of the neuron."""
        children = psutil.Process(self.pid("neuron")).children()
        return [child.pid for child in children if _is_device_process(child)]

    def manage(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run `manage.py` beside it, as an operator would."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
        )

    def status(self) -> Any:
        return json.loads(self.manage("status", "--json").stdout)

    def query(self, expression: str) -> Any:
        """Evaluate an expression over `fleet.models` and `inference.models` in its database."""
        program = (
            "import json; from fleet.models import *; from inference.models import *; "
            f"print(json.dumps({expression}, default=str))"
        )
        return json.loads(self.manage("shell", "--no-imports", "-c", program).stdout)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:  # until the last of its processes has closed the pipe
            self.output.append(line.rstrip("\n"))
            if match := STARTED.match(line.rstrip("\n")):
                self._pids[match.group(1)] = int(match.group(2))
        process.stdout.close()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "\n".join(self.output)
        return any(line.startswith("Cortex is ready") for line in self.output)


def _ignore_interrupts() -> None:
    """Scripts start their background jobs like this; Ctrl-C must stop `up` all the same."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_device_process(process: psutil.Process) -> bool:
    try:
        return "neuron_agent.devices.process" in process.cmdline()
    except psutil.NoSuchProcess:  # a zombie counts as gone
        return False
