"""Time to first token with and without a prompt's beginning being known already.

    python bench/prefix.py [--rounds N] [--tokens 4096] [--core C]

A neuron with one CPU device of one thread serves the random model of `engine.py` in bf16. Each
round sends two requests, one after the other, over its HTTP port: both begin with the same 4,096
tokens, which no earlier request had, and end with 32 tokens of their own.

- `ttft_ms_cold`: of the first: from the request's first byte to its first text.
- `ttft_ms_shared`: of the second, whose beginning the first one has left in the cache.
- `ratio`: the one by the other, the median of the rounds' ratios.

Medians over the rounds, after a first round that is not counted. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from pathlib import Path

from engine_sides import neuron_body
from processes import running_neuron
from random_model import VOCABULARY_SIZE, build_model
from streams import Job, stream_one

SEED = 5
OWN_TOKENS = 32
FIRST_ORDINARY_ID = 300
"""Below are special tokens and single bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4096, help="length of the shared beginning")
    parser.add_argument("--core", type=int, help="the core that the neuron runs on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as name:
        scratch = Path(name)
        folder = build_model(scratch / "model")
        with running_neuron(scratch / "neuron.log", core=options.core) as server:
            load = {"model_id": "random", "source": str(folder), "dtype": "bfloat16", "wait": True}
            server.post("/models/load", load)
            choice = random.Random(SEED)
            rounds = [
                asyncio.run(cold_and_shared(server.port, options.tokens, choice))
                for _ in range(options.rounds + 1)
            ]
    print(json.dumps({"prefix_tokens": options.tokens, **summary_of(rounds[1:])}))


async def cold_and_shared(port: int, num_shared: int, choice: random.Random) -> tuple[float, float]:
    """Return the milliseconds to the first token of both requests of a round."""
    shared = random_ids(choice, num_shared)
    times = []
    for _ in range(2):
        job = Job(shared + random_ids(choice, OWN_TOKENS), num_tokens=8)
        times.append((await stream_one(port, neuron_body(job))).ttft_seconds * 1000)
    print(f"cold {times[0]:.1f} ms, shared {times[1]:.1f} ms", flush=True)
    return times[0], times[1]


def random_ids(choice: random.Random, num_tokens: int) -> list[int]:
    return [choice.randrange(FIRST_ORDINARY_ID, VOCABULARY_SIZE) for _ in range(num_tokens)]


def summary_of(rounds: list[tuple[float, float]]) -> dict[str, float]:
    return {
        "rounds": len(rounds),
        "ttft_ms_cold": round(statistics.median(cold for cold, _ in rounds), 1),
        "ttft_ms_shared": round(statistics.median(shared for _, shared in rounds), 1),
        "ratio": round(statistics.median(cold / shared for cold, shared in rounds), 1),
    }


if __name__ == "__main__":
    main()
