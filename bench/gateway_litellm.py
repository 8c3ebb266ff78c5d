"""LiteLLM's proxy as the other side of a comparison: installed apart, set up for production.

The virtual environment lives in a cache folder, named for what is in it, and is made once. LiteLLM
is set up as its documentation advises for production, one worker, and without what would slow it
down here: no database, no key to check, no log but of errors, no call home. The stub is to it what
vLLM is, a server that speaks OpenAI's chat: of one like OpenAI itself it would ask the Responses
API for its Anthropic clients. Chats take it as long either way.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements-litellm.txt"
INSTALL_SECONDS = 900.0
_MARK = "installed"

SETTINGS = """\
model_list:
  - model_name: stub
    litellm_params:
      model: hosted_vllm/stub
      api_base: {endpoint}/v1
      api_key: none
litellm_settings:
  request_timeout: 600
  set_verbose: false
  json_logs: true
  telemetry: false
general_settings:
  disable_spend_logs: true
  disable_error_logs: true
"""
HEALTH_PATH = "/health/liveliness"
ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
}


class CannotInstall(Exception):
    """LiteLLM is not there, and cannot be had."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    base = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cortex-bench"


def installed(folder: Path) -> Path:
    """Return the folder of LiteLLM's programs, installed now if they are not. Raises CannotInstall.

    The mark is written last: what was broken off is not taken for an installation.
    """
    contents = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    home = folder / f"litellm-{contents[:12]}"
    if not (home / _MARK).exists():
        shutil.rmtree(home, ignore_errors=True)
        print(f"installing LiteLLM to {home}", flush=True)
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(home / "bin/pip"), "install", "--quiet", "--requirement", str(REQUIREMENTS)])
        (home / _MARK).touch()
    return home / "bin"


def command(programs: Path, endpoint: str, folder: Path, port: int) -> list[str]:
    """Return how it is started, in front of an OpenAI-compatible server at `endpoint`."""
    settings = folder / "litellm.yaml"
    settings.write_text(SETTINGS.format(endpoint=endpoint))
    options = ["--config", str(settings), "--host", "127.0.0.1", "--port", str(port)]
    return [str(programs / "litellm"), *options, "--num_workers", "1"]


def _run(arguments: list[str]) -> None:
    """Raises CannotInstall."""
    try:
        done = subprocess.run(
            arguments,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=INSTALL_SECONDS,
            env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(str(error)) from None
    if done.returncode != 0:
        last_lines = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise CannotInstall(" ".join(last_lines) or f"status {done.returncode}")
