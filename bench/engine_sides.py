"""The engines that `engine.py` compares, each of them a process that answers the same jobs.

A side says what it is missing, starts fresh for a number of clients, and runs jobs. What the
numbers mean is not its business.
"""

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from in_process import NUM_PAGES, PAGE_TOKENS, TOKENS_A_STEP
from processes import Server, ServerFailed, free_port, running, running_neuron, wait_until_healthy
from streams import Job, Times, run_jobs

HERE = Path(__file__).resolve().parent
LLAMA_SERVER = "LLAMA_SERVER"
LONGEST_TOKENS = 704
"""Prompt and output of the longest job, rounded up."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a side is started with."""

    folder: Path
    gguf: Path
    scratch: Path
    core: int | None
    num_clients: int

    @property
    def log(self) -> Path:
        return self.scratch / "servers.log"


@dataclass(frozen=True, slots=True)
class Started:
    server: Server
    run: Callable[[Sequence[Job], int], list[Times]]


class Side(Protocol):
    def missing(self) -> str | None:
        """Say why this side cannot run here; None if it can."""
        ...

    def started(self, setting: Setting) -> contextlib.AbstractContextManager[Started]: ...


@dataclass(frozen=True, slots=True)
class Neuron:
    """Ours, over its HTTP port; `options` are those of the load."""

    options: dict[str, str]

    def missing(self) -> str | None:
        return None

    @contextlib.contextmanager
    def started(self, setting: Setting) -> Iterator[Started]:
        with running_neuron(setting.log, core=setting.core) as server:
            load = {"model_id": "random", "source": str(setting.folder), "wait": True}
            server.post("/models/load", load | self.options)
            yield Started(server, over_http(server, neuron_body))


@dataclass(frozen=True, slots=True)
class InProcess:
    """transformers without HTTP, through `in_process.py`."""

    kind: str

    def missing(self) -> str | None:
        return None

    @contextlib.contextmanager
    def started(self, setting: Setting) -> Iterator[Started]:
        command = [sys.executable, str(HERE / "in_process.py"), self.kind, str(setting.folder)]
        with running(command, setting.log, core=setting.core) as server:
            yield Started(server, lambda jobs, clients: _ask_process(server, jobs, clients))


@dataclass(frozen=True, slots=True)
class TransformersServe:
    """`transformers serve --continuous-batching`; `path` is the command, if not Python's own."""

    path: str | None = None

    def missing(self) -> str | None:
        if self.path is None and importlib.util.find_spec("fastapi") is None:
            return "transformers[serving] is not installed: see the docstring of engine.py"
        return None if shutil.which(self._command) else f"no {self._command}"

    @property
    def _command(self) -> str:
        return self.path or str(Path(sys.executable).parent / "transformers")

    @contextlib.contextmanager
    def started(self, setting: Setting) -> Iterator[Started]:
        port = free_port()
        options = {
            "--host": "127.0.0.1",
            "--port": str(port),
            "--device": "cpu",
            "--dtype": "bfloat16",
            "--cb-block-size": str(PAGE_TOKENS),
            "--cb-num-blocks": str(NUM_PAGES),
            "--cb-max-batch-tokens": str(TOKENS_A_STEP),
        }
        flags = [word for pair in options.items() for word in pair]
        command = [self._command, "serve", str(setting.folder)]
        command += ["--continuous-batching", *flags]
        with running(command, setting.log, port=port, core=setting.core) as server:
            wait_until_healthy(server)
            yield Started(server, over_http(server, _serve_body(setting.folder)))


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """llama.cpp's own server, on a GGUF file of the same weights."""

    path: str | None = None

    def missing(self) -> str | None:
        return None if self._found else "no llama-server: see the docstring of engine.py"

    @property
    def _found(self) -> str | None:
        return shutil.which(self.path or os.environ.get(LLAMA_SERVER) or "llama-server")

    @contextlib.contextmanager
    def started(self, setting: Setting) -> Iterator[Started]:
        port, slots = free_port(), setting.num_clients
        options = {
            "-m": str(setting.gguf),
            "--host": "127.0.0.1",
            "--port": str(port),
            "--threads": "1",
            "--threads-batch": "1",
            "--threads-http": "2",
            "--parallel": str(slots),
            "--ctx-size": str(slots * LONGEST_TOKENS),
            "--batch-size": str(TOKENS_A_STEP),
            "--ubatch-size": str(TOKENS_A_STEP),
            "--cache-type-k": "bf16",
            "--cache-type-v": "bf16",
        }
        flags = [word for pair in options.items() for word in pair]
        assert self._found is not None
        command = [self._found, "--cont-batching", *flags]
        with running(command, setting.log, port=port, core=setting.core) as server:
            wait_until_healthy(server)
            yield Started(server, over_http(server, _llama_body))


def sides(llama_server: str | None, transformers: str | None) -> dict[str, Side]:
    """Return all sides by name; ours first."""
    return {
        "neuron": Neuron({"dtype": "bfloat16"}),
        "neuron-int8": Neuron({"dtype": "bfloat16", "quant": "int8"}),
        "generate": InProcess("generate"),
        "batching": InProcess("batching"),
        "serve": TransformersServe(transformers),
        "llama": LlamaServer(llama_server),
    }


# --- asking --------------------------------------------------------------------------------------


def over_http(
    server: Server, body_of: Callable[[Job], dict[str, Any]]
) -> Callable[[Sequence[Job], int], list[Times]]:
    """Return what runs jobs on a server's port."""

    def run(jobs: Sequence[Job], num_clients: int) -> list[Times]:
        bodies = [body_of(job) for job in jobs]
        return asyncio.run(run_jobs(server.port, bodies, num_clients))

    return run


def neuron_body(job: Job) -> dict[str, Any]:
    return {
        "model": "random",
        "prompt": job.prompt_ids,
        "max_tokens": job.num_tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


def _llama_body(job: Job) -> dict[str, Any]:
    return neuron_body(job) | {"cache_prompt": False, "samplers": ["temperature"]}


def _serve_body(folder: Path) -> Callable[[Job], dict[str, Any]]:
    """transformers' server takes text and a whole generation config."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def body(job: Job) -> dict[str, Any]:
        config = {
            "max_new_tokens": job.num_tokens,
            "do_sample": False,
            "eos_token_id": -1,
            "pad_token_id": 0,
        }
        return {
            "model": str(folder),
            "prompt": tokenizer.decode(job.prompt_ids),
            "max_tokens": job.num_tokens,
            "generation_config": json.dumps(config),
        }

    return body


def _ask_process(server: Server, jobs: Sequence[Job], num_clients: int) -> list[Times]:
    asked = {"jobs": [[job.prompt_ids, job.num_tokens] for job in jobs], "clients": num_clients}
    stdin, stdout = server.process.stdin, server.process.stdout
    assert stdin is not None
    assert stdout is not None
    stdin.write(json.dumps(asked).encode() + b"\n")
    stdin.flush()
    line = stdout.readline()
    if not line:
        raise ServerFailed(f"{server.process.args} ended: see {server.log}")
    return [Times(sent_at, arrived_at, len(arrived_at)) for sent_at, arrived_at in json.loads(line)]
