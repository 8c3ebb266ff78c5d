"""Builds the demo model: `python -m neuron_agent.demo_model FOLDER`.

A small Qwen3 chat model that knows `CONVERSATIONS` by heart, made on the spot: nothing is
downloaded. This module knows when to build and how a folder appears whole; it loads torch only
when there is something to build.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from neuron_agent import demo
from neuron_agent.demo.lessons import Recipe
from neuron_agent.demo.texts import CONVERSATIONS, Conversation

__all__ = ["CONVERSATIONS", "Conversation", "build"]

_RECIPE_FILE = "recipe.json"


def build(folder: Path, report: Callable[[str], None]) -> bool:
    """Build the model into `folder`, unless it is there already; return whether it was built.

    The folder appears whole or not at all, and of several builders at once one builds. An older
    recipe's folder is replaced; a folder that is no demo model is left alone (FileExistsError).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    identity = _identity()
    with _lock(folder.with_name(f".{folder.name}.lock")):
        if _built_identity(folder) == identity:
            return False
        scratch = folder.with_name(f".{folder.name}.building")
        shutil.rmtree(scratch, ignore_errors=True)  # of a builder that was killed
        scratch.mkdir()
        _write(scratch, report)
        (scratch / _RECIPE_FILE).write_text(json.dumps({"identity": identity}) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return True


def _write(folder: Path, report: Callable[[str], None]) -> None:
    # Before torch loads: threads that wait spinning take the cores from whoever has work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from neuron_agent.demo.folder import write_folder

    write_folder(folder, Recipe(), report)


def _identity() -> str:
    """Return what tells this recipe's model from another's: a digest of all that makes it."""
    digest = hashlib.sha256()
    for path in sorted(Path(demo.__file__).parent.glob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _built_identity(folder: Path) -> str | None:
    """Return the identity of the model in a folder, None if there is no folder or an empty one."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        return str(json.loads((folder / _RECIPE_FILE).read_text())["identity"])
    except (OSError, ValueError, KeyError) as error:
        raise FileExistsError(f"{folder} holds something that is no demo model") from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock between processes. The file stays: removing it would let two hold the lock."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m neuron_agent.demo_model", description=build.__doc__
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    began_at = time.monotonic()

    def report(line: str) -> None:
        sys.stdout.write(f"demo model: {line} ({time.monotonic() - began_at:.0f} s)\n")
        sys.stdout.flush()

    try:
        was_built = build(folder.absolute(), report)
    except FileExistsError as error:
        parser.error(str(error))
    report(f"{'built' if was_built else 'already there'}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
