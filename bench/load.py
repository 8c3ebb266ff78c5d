"""How long a load takes, beside merely reading its files.

    python bench/load.py [--rounds N] [--model FOLDER]

The models: a random Qwen3 shape of 268 M parameters, 537 MB in bf16, in one safetensors file, and,
with --model, a folder of yours. They are loaded in their own dtype, by a neuron with one CPU device
of one thread which has started and loaded another model before, so that no import is in the
numbers. Each is loaded `rounds` times with its files in the page cache (`warm`) and as often after
they were dropped from it (`cold`), where the system lets us.

- `read_seconds`: reading all files of the folder from begin to end, 1 MB at a time, in one thread.
- `load_seconds`: from the request to load until the model is ready: files read, forward checked,
  first token out.
- `first_token_seconds`: the same, until the first text of a request sent after that has come.
- `ratio`: load_seconds by read_seconds.

Medians over the rounds; reading and loading in turns. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from engine_sides import neuron_body
from processes import Server, running_neuron
from random_model import MEDIUM, SMALL, build_model
from streams import Job, stream_one

BLOCK_BYTES = 2**20
MODEL = "random"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a folder to load besides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as name:
        scratch = Path(name)
        first = build_model(scratch / "small", SMALL)
        folders = {"random 268M": build_model(scratch / "medium", MEDIUM)}
        if options.model:
            folders[options.model.name] = options.model.resolve()
        with running_neuron(scratch / "neuron.log") as server:
            load_once(server, first)
            result = {
                f"{name}, {kind}": measure(server, folder, options.rounds, is_cold=kind == "cold")
                for name, folder in folders.items()
                for kind in ("warm", "cold")
            }
    print(json.dumps(result))


def measure(server: Server, folder: Path, rounds: int, *, is_cold: bool) -> dict[str, float]:
    read, loaded, first = [], [], []
    for _ in range(rounds):
        set_cached(folder, is_cold=is_cold)
        read.append(read_all(folder))
        set_cached(folder, is_cold=is_cold)
        load_seconds, first_token_seconds = load_once(server, folder)
        loaded.append(load_seconds)
        first.append(first_token_seconds)
    summary = {
        "megabytes": sum(path.stat().st_size for path in files_of(folder)) // 2**20,
        "read_seconds": round(statistics.median(read), 3),
        "load_seconds": round(statistics.median(loaded), 3),
        "first_token_seconds": round(statistics.median(first), 3),
        "ratio": round(statistics.median(loaded) / statistics.median(read), 2),
    }
    print(f"{folder.name}, {'cold' if is_cold else 'warm'}: {summary}", flush=True)
    return summary


def load_once(server: Server, folder: Path) -> tuple[float, float]:
    """Return the seconds until ready and until a first token; the model is gone afterwards."""
    began_at = time.perf_counter()
    server.post("/models/load", {"model_id": MODEL, "source": str(folder), "wait": True})
    ready_at = time.perf_counter()
    times = asyncio.run(stream_one(server.port, neuron_body(Job([5, 6, 7], 2))))
    server.post("/models/unload", {"model_id": MODEL})
    return ready_at - began_at, times.arrived_at[0] - began_at


def read_all(folder: Path) -> float:
    """Return the seconds it takes to read all files."""
    began_at = time.perf_counter()
    for path in files_of(folder):
        with path.open("rb", buffering=0) as file:
            while file.read(BLOCK_BYTES):
                pass
    return time.perf_counter() - began_at


def set_cached(folder: Path, *, is_cold: bool) -> None:
    """Bring all files into the page cache, or have the system drop them from it."""
    read_all(folder)
    if not is_cold:
        return
    for path in files_of(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what is not written yet cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


if __name__ == "__main__":
    main()
