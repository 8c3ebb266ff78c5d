"""Throughput and latency of the engine, beside others on the same weights in one run.

    python bench/engine.py [--sides neuron,llama] [--clients 1,16] [--rounds N] [--requests R]
                           [--core C] [--llama-server PATH] [--transformers PATH]
    python bench/engine.py --mixed [--sides neuron] [--rounds N]

The model: a Qwen3 shape of 66.5 M parameters (hidden 640, 12 layers, 10 heads of 64, 5 KV heads,
feed-forward 1792, vocabulary 8192, untied), random weights of a fixed seed in bf16, and a tokenizer
trained on the standard library's sources. The requests: prompts of 32 to 512 tokens cut from that
text, 64 to 128 tokens of output, of a fixed seed, greedy, no token ends a text. `clients` send one
request after another until `requests` times as many as there are clients are answered (2 by
default, and never fewer than 4).

The sides, each a process of its own with one compute thread, started afresh for each number of
clients and measured in turns, every other round in the opposite order:

- `neuron`, `neuron-int8`: ours, bf16 and int8 made at the load, over the neuron's HTTP port
  (/v1/completions); the CPU time of the front process and of the device process are both counted.
- `generate`: transformers' `generate`, one request at a time whatever the number of clients; no
  HTTP. It is given four requests.
- `batching`: transformers' continuous batching manager; no HTTP. No prompt is shared.
- `serve`: `transformers serve --continuous-batching`, over HTTP (it takes text, not token ids).
- `llama`: llama.cpp's llama-server, a GGUF file of the same weights, bf16 KV cache, over HTTP.

The load generator is this process. With `--core` the servers run on that core and this process on
the others, so that neither disturbs the other.

The numbers, after a warm-up of two requests that is not counted; medians over the rounds:

- `tokens_per_cpu_second`: tokens that came, by user and system time of all the server's processes
  over the run. It suffers little from neighbours on the machine, so it is the one to compare.
- `tokens_per_second`: the same by the wall's clock.
- `ttft_ms_p50`, `_p95`: from a request's first byte to its first text, of all rounds' requests.
- `itl_ms_p50`, `_p99`: from one piece of a request's text to its next, of all rounds' requests.

With `--mixed`: 8 streams decode, and when all have text a prompt of 2,000 tokens arrives. `itl_ms`
of the 8 streams from then on until the first of them ends, `p99_by_median`, and `prompt_ttft_ms`.

llama-server is looked for at --llama-server, then in LLAMA_SERVER, then on the PATH; without it
that side says so and the others run. To build it from the source package:

    pip download --no-binary :all: --no-deps --no-build-isolation llama-cpp-python==0.3.36
    tar xf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release \\
        -DGGML_NATIVE=ON -DLLAMA_CURL=OFF
    cmake --build build --target llama-server

`serve` needs transformers[serving], in this environment or in another whose command `transformers`
is given with --transformers.

The last line is one JSON object; each line before it is one side's at one number of clients.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_sides import Setting, Side, neuron_body, sides
from processes import ServerFailed
from random_model import build_model, corpus_ids, write_gguf
from streams import Job, StreamFailed, Times, mixed_jobs, stream_one

SEED = 11
LEAST_REQUESTS = 4
GENERATE_REQUESTS = 4
ENOUGH_TOKENS = 0.95
"""Share of the wanted tokens below which a run counts for nothing."""
MIXED_STREAMS = 8
MIXED_TOKENS = 192
LONG_PROMPT_TOKENS = 2000


@dataclass
class Measured:
    """What one side gave at one number of clients, over all rounds."""

    per_cpu_second: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)

    def add(self, times: Sequence[Times], cpu_seconds: float) -> None:
        num_tokens = sum(each.num_tokens for each in times)
        began_at = min(each.sent_at for each in times)
        ended_at = max(each.arrived_at[-1] for each in times)
        self.per_cpu_second.append(num_tokens / cpu_seconds)
        self.per_second.append(num_tokens / (ended_at - began_at))
        self.ttft_ms += [each.ttft_seconds * 1000 for each in times]
        self.itl_ms += [gap * 1000 for each in times for gap in each.gaps_seconds]

    @property
    def summary(self) -> dict[str, float]:
        return {
            "tokens_per_cpu_second": round(statistics.median(self.per_cpu_second), 1),
            "tokens_per_second": round(statistics.median(self.per_second), 1),
            "ttft_ms_p50": round(statistics.median(self.ttft_ms), 1),
            "ttft_ms_p95": round(percentile(self.ttft_ms, 0.95), 1),
            "itl_ms_p50": round(statistics.median(self.itl_ms), 2),
            "itl_ms_p99": round(percentile(self.itl_ms, 0.99), 2),
        }


def main() -> None:
    options = parse_options()
    chosen = usable(sides(options.llama_server, options.transformers), options.sides.split(","))
    if options.core is not None:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {options.core} or {options.core})
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as name:
        scratch = Path(name)
        folder = build_model(scratch / "model")
        gguf = scratch / "model.gguf"
        if "llama" in chosen:
            write_gguf(folder, gguf)
        setting = Setting(folder, gguf, scratch, options.core, num_clients=1)
        if options.mixed:
            result = measure_mixed(setting, chosen, options.rounds)
        else:
            counts = [int(count) for count in options.clients.split(",")]
            result = measure(setting, chosen, counts, options.rounds, options.requests)
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default=",".join(sides(None, None)), help="comma-separated")
    parser.add_argument("--clients", default="1,4,16,32", help="numbers of clients at once")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--requests", type=float, default=2.0, help="times the number of clients")
    parser.add_argument("--core", type=int, help="the core that the servers run on")
    parser.add_argument("--llama-server", help="path to llama-server")
    parser.add_argument("--transformers", help="path to the command `transformers`, for serve")
    parser.add_argument("--mixed", action="store_true", help="a long prompt among streams")
    return parser.parse_args()


def usable(known: dict[str, Side], wanted: Sequence[str]) -> dict[str, Side]:
    """Return the wanted sides that can run here; print why the others cannot."""
    if unknown := set(wanted) - set(known):
        raise SystemExit(
            f"no such side: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    chosen = {}
    for name in wanted:
        if why := known[name].missing():
            print(f"{name}: left out: {why}", flush=True)
        else:
            chosen[name] = known[name]
    return chosen


# --- throughput ----------------------------------------------------------------------------------


def measure(
    setting: Setting, chosen: dict[str, Side], counts: Sequence[int], rounds: int, requests: float
) -> dict[str, Any]:
    corpus = corpus_ids(setting.folder)
    measured: dict[str, dict[int, Measured]] = {name: {} for name in chosen}
    failed: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for count in counts:
            jobs = mixed_jobs(corpus, max(LEAST_REQUESTS, round(requests * count)), SEED + number)
            for name in in_turn(chosen, number):
                given = jobs[:GENERATE_REQUESTS] if name == "generate" else jobs
                into = measured[name].setdefault(count, Measured())
                try:
                    run_side(chosen[name], with_clients(setting, count), given, into)
                except* (ServerFailed, StreamFailed) as failure:
                    failed[f"{name} at {count}"] = describe(failure)
                    print(f"{name} at {count} clients failed: {describe(failure)}", flush=True)
                else:
                    print(f"{name} at {count} clients: {into.summary}", flush=True)
    return {
        "model": "qwen3 66.5M bf16",
        "rounds": rounds,
        "failed": failed,
        "sides": {
            name: {str(count): each.summary for count, each in counted.items() if each.ttft_ms}
            for name, counted in measured.items()
        },
    }


def run_side(side: Side, setting: Setting, jobs: Sequence[Job], into: Measured) -> None:
    """Start a side, warm it up, and add what it gives. Raises what the side raises."""
    warm_up = [Job(job.prompt_ids[-64:], 8) for job in jobs[:2]]
    with side.started(setting) as started:
        started.run(warm_up, 1)
        before = started.server.cpu_seconds()
        times = started.run(jobs, setting.num_clients)
        cpu_seconds = started.server.cpu_seconds() - before
    num_tokens = sum(each.num_tokens for each in times)
    num_wanted = sum(job.num_tokens for job in jobs)
    if num_tokens < ENOUGH_TOKENS * num_wanted:
        raise StreamFailed(f"{num_tokens} tokens came of {num_wanted}")
    into.add(times, cpu_seconds)


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """Return the sides in the order of a round: each comes early in one and late in the next."""
    return list(names) if number % 2 else list(names)[::-1]


def with_clients(setting: Setting, count: int) -> Setting:
    return Setting(setting.folder, setting.gguf, setting.scratch, setting.core, count)


def describe(failure: BaseExceptionGroup[Exception]) -> str:
    first: BaseException = failure
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first)[:600]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- a long prompt among streams -----------------------------------------------------------------


def measure_mixed(setting: Setting, chosen: dict[str, Side], rounds: int) -> dict[str, Any]:
    corpus = corpus_ids(setting.folder)
    result = {}
    for name, side in chosen.items():
        if not name.startswith("neuron"):
            print(f"{name}: left out: --mixed looks at the neuron alone", flush=True)
            continue
        gaps_ms: list[float] = []
        ttft_ms: list[float] = []
        with side.started(setting) as started:
            for number in range(rounds):
                gaps, ttft = asyncio.run(mix(started.server.port, corpus, SEED + number))
                gaps_ms += gaps
                ttft_ms.append(ttft)
        result[name] = summary_of_mixed(gaps_ms, ttft_ms)
        print(f"{name}: {result[name]}", flush=True)
    return {"model": "qwen3 66.5M bf16", "rounds": rounds, "mixed": result}


async def mix(port: int, corpus: Sequence[int], seed: int) -> tuple[list[float], float]:
    """Return the streams' gaps while and after the prompt is computed, and its TTFT, in ms."""
    starts = range(seed * 100, seed * 100 + MIXED_STREAMS * 300, 300)
    jobs = [Job(list(corpus[start : start + 100]), MIXED_TOKENS) for start in starts]
    long_job = Job(list(corpus[-LONG_PROMPT_TOKENS - seed : -seed]), 8)
    streams = [asyncio.create_task(stream_one(port, neuron_body(job))) for job in jobs]
    # One more of them is as good a sign as any that all have text: it came last.
    await stream_one(port, neuron_body(Job(list(corpus[:16]), 4)))
    long_times = await stream_one(port, neuron_body(long_job))
    times = await asyncio.gather(*streams)
    last_at = min(each.arrived_at[-1] for each in times)
    gaps = [
        (later - earlier) * 1000
        for each in times
        for earlier, later in zip(each.arrived_at, each.arrived_at[1:], strict=False)
        if later > long_times.sent_at and earlier < last_at
    ]
    return gaps, long_times.ttft_seconds * 1000


def summary_of_mixed(gaps_ms: Sequence[float], ttft_ms: Sequence[float]) -> dict[str, float]:
    median, p99 = statistics.median(gaps_ms), percentile(gaps_ms, 0.99)
    return {
        "itl_ms_p50": round(median, 2),
        "itl_ms_p99": round(p99, 2),
        "p99_by_median": round(p99 / median, 2),
        "prompt_ttft_ms": round(statistics.median(ttft_ms), 1),
    }


if __name__ == "__main__":
    main()
