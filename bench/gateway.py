"""What the gateway adds to a stream: beside a bare relay, and beside LiteLLM's proxy.

    python bench/gateway.py [--rounds N] [--seconds S] [--streams 1,32,256] [--no-litellm]

One process each, all on this machine, before one stub neuron (`stub_neuron.py`):

- `relay`: `bare_relay.py`, bytes pumped and nothing parsed: the floor.
- `cortex_chat`, `cortex_messages`: one gateway as it is served (`manage.py serve --role gateway`:
  real settings, a data folder of its own, SQLite, records and metrics on) with one ready placement
  on the stub, asked as OpenAI's clients ask and as Anthropic's do.
- `litellm_chat`, `litellm_messages`: LiteLLM's proxy (`gateway_litellm.py`), asked in the same two
  ways. It is installed in a cache folder on the first run; where it cannot be, a line says so and
  it is left out.

The load generator is this process. The numbers, each for every side, measured in turns, each round
in the other order, after a warm-up that is not counted:

- `added_ttft_us`: for each number of streams at once, p50 and p99: one client sends one request
  after the other while the rest of the streams run at 20 tokens a second, from half a second after
  their beginning; alone it does so for as long. Time from a request's first byte to its first
  token, minus the median of the same straight from the stub in the same round, beside the same
  streams.
- `cpu_us_per_request`: 16 connections, 1 token each: CPU time (user + system) of the side's process
  over the run, by its requests.
- `cpu_us_per_chunk`: for each number of streams at once, 20 tokens a second each: CPU time of the
  side's process over the run, by the tokens. Beginning and end of the streams are in it, and what
  the process does every second whether asked or not, as they are in life.
- `chunk_delay_us`: of the same runs, p50 and p99 of the time from the stub's sending of a token to
  its arrival at the client. `stub` is without anything between.
- `stalled`: what a client costs that asks for 32 MB and reads none of it (`gateway_faults.py`), 16
  of them: growth of the process's resident memory at its peak, and the delay of the tokens of 32
  other streams without them and beside them. Once, after the rounds.
- `slow_senders`: of clients that send a byte of their head, or of their body, each second, how many
  were cut off within 15 s, and when. Not of the relay, which does not parse; once as well.
- `times_litellm`: LiteLLM's medians by those of Cortex, each dialect by the same.

What a process does some time after the last answer, such as writing records, belongs to the
requests it does it for: CPU time is read 2 s later. The last line is one JSON object; the lines
before it are the same after each round.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gateway_litellm
import gateway_sides
import uvloop
from clients import Measured, Pace, run, run_beside
from gateway_faults import describe_stalled, slow_senders, stalled_readers
from gateway_sides import Side, Sides

INTERVAL_MS = 50
CPU_CONNECTIONS = 16
CPU_REQUESTS = 50
BEGIN_SECONDS = 0.5
SETTLE_SECONDS = 2.0
STALL_SECONDS = 8.0
IN_ONE_GO = Pace(num_tokens=2)

Times = dict[str, list[float]]
"""By side, in microseconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a stream")
    parser.add_argument("--streams", default="1,32,256", help="numbers of streams at once")
    parser.add_argument("--no-litellm", action="store_true", help="leave LiteLLM out")
    options = parser.parse_args()
    counts = [int(count) for count in options.streams.split(",")]
    litellm = None if options.no_litellm else find_litellm()
    with (
        tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder,
        gateway_sides.running(Path(folder), litellm) as sides,
    ):
        result = uvloop.run(measure(sides, options.rounds, options.seconds, counts))
    print(json.dumps(result))


def find_litellm() -> Path | None:
    """Return the folder of LiteLLM's programs; None, and a line that says why, without them."""
    try:
        return gateway_litellm.installed(gateway_litellm.cache_folder(os.environ))
    except gateway_litellm.CannotInstall as error:
        print(f"LiteLLM is left out, it cannot be installed: {error}", flush=True)
        return None


# --- measuring -----------------------------------------------------------------------------------


def by_side() -> Times:
    return defaultdict(list)


@dataclass
class Results:
    """All rounds so far, by number of streams and side."""

    added_ttft: dict[int, Times] = field(default_factory=lambda: defaultdict(by_side))
    per_request: Times = field(default_factory=by_side)
    per_chunk: dict[int, Times] = field(default_factory=lambda: defaultdict(by_side))
    delays: dict[int, Times] = field(default_factory=lambda: defaultdict(by_side))

    def summary(self) -> dict[str, Any]:
        return {
            "added_ttft_us": {str(n): percentiles(times) for n, times in self.added_ttft.items()},
            "cpu_us_per_request": medians(self.per_request),
            "cpu_us_per_chunk": {str(n): medians(times) for n, times in self.per_chunk.items()},
            "chunk_delay_us": {str(n): percentiles(times) for n, times in self.delays.items()},
        }


async def measure(sides: Sides, rounds: int, seconds: float, counts: list[int]) -> dict[str, Any]:
    for side in (sides.stub, *sides.compared):
        checked(side, await run(side.process.port, side.asking, IN_ONE_GO, 8, 25))
    results = Results()
    for number in range(1, rounds + 1):
        for count in counts:
            await measure_streams(sides, number, count, seconds, results)
        for side in in_turn(number, sides.compared):
            results.per_request[side.name].append(await request_cost(side))
        print(f"after round {number}: {json.dumps(results.summary())}", flush=True)
    summary = results.summary()
    return {
        **summary,
        **await faults(sides),
        "times_litellm": times_litellm(summary),
        "rounds": rounds,
        "seconds": seconds,
        "tokens_per_second": 1000 // INTERVAL_MS,
    }


async def measure_streams(
    sides: Sides, number: int, count: int, seconds: float, results: Results
) -> None:
    """Measure what is measured for each number of streams at once."""
    straight = statistics.median(await ttft_us(sides.stub, count, seconds))
    await chunk_cost(sides.stub, count, seconds, results)
    for side in in_turn(number, sides.compared):
        added = [us - straight for us in await ttft_us(side, count, seconds)]
        results.added_ttft[count][side.name] += added
        cost = await chunk_cost(side, count, seconds, results)
        results.per_chunk[count][side.name].append(cost)


def in_turn(number: int, sides: tuple[Side, ...]) -> tuple[Side, ...]:
    """Return the sides in the order of a round: who comes second meets a warmer machine."""
    return sides if number % 2 else sides[::-1]


async def ttft_us(side: Side, count: int, seconds: float) -> list[float]:
    """Return the times of a client's requests, one after the other, beside other streams."""
    port = side.process.port
    others = run(port, side.asking, stream_pace(seconds), count - 1) if count > 1 else rest(seconds)
    background = asyncio.create_task(others)
    await asyncio.sleep(BEGIN_SECONDS)
    probed = await run_beside(port, side.asking, IN_ONE_GO, background)
    checked(side, background.result())
    return [ns / 1000 for ns in checked(side, probed).ttft_ns]


async def rest(seconds: float) -> Measured:
    """Be no stream: who is asked alone is asked for as long as beside others."""
    await asyncio.sleep(seconds)
    return Measured()


async def request_cost(side: Side) -> float:
    ask = partial(run, side.process.port, side.asking, Pace(num_tokens=1))
    cpu_ns, measured = await with_cpu_time(side, ask, CPU_CONNECTIONS, CPU_REQUESTS)
    return cpu_ns / 1000 / measured.num_requests


async def chunk_cost(side: Side, count: int, seconds: float, results: Results) -> float:
    ask = partial(run, side.process.port, side.asking, stream_pace(seconds))
    cpu_ns, measured = await with_cpu_time(side, ask, count, 1)
    results.delays[count][side.name] += [ns / 1000 for ns in measured.delays_ns]
    return cpu_ns / 1000 / measured.num_tokens


async def with_cpu_time(
    side: Side, ask: Any, num_streams: int, num_requests: int
) -> tuple[int, Measured]:
    before = side.process.cpu_ns()
    measured = checked(side, await ask(num_streams, num_requests))
    await asyncio.sleep(SETTLE_SECONDS)
    return side.process.cpu_ns() - before, measured


async def faults(sides: Sides) -> dict[str, Any]:
    parsing = [side for side in sides.compared if side.name != "relay"]
    stalled = {
        side.name: describe_stalled(await stalled_readers(side, STALL_SECONDS))
        for side in sides.compared
    }
    slow = {side.name: asdict(await slow_senders(side)) for side in parsing}
    return {"stalled": stalled, "slow_senders": slow}


def stream_pace(seconds: float) -> Pace:
    return Pace(max(1, round(seconds * 1000 / INTERVAL_MS)), INTERVAL_MS)


def checked(side: Side, measured: Measured) -> Measured:
    if measured.num_errors:
        raise SystemExit(
            f"{side.name}: {measured.num_errors} requests failed: the numbers mean nothing"
        )
    return measured


# --- summing up ----------------------------------------------------------------------------------


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def percentiles(times: Times) -> dict[str, dict[str, float]]:
    return {
        name: {
            "p50": round(statistics.median(values), 1),
            "p99": round(percentile(values, 0.99), 1),
        }
        for name, values in times.items()
    }


def medians(times: Times) -> dict[str, float]:
    return {name: round(statistics.median(values), 1) for name, values in times.items()}


def times_litellm(summary: dict[str, Any]) -> dict[str, Any]:
    """Return how many times what Cortex costs LiteLLM costs, by dialect; {} without LiteLLM."""
    return {
        dialect: times_in(dialect, summary)
        for dialect in ("chat", "messages")
        if f"litellm_{dialect}" in summary["cpu_us_per_request"]
    }


def times_in(dialect: str, summary: dict[str, Any]) -> dict[str, Any]:
    def ratio(sides: dict[str, float]) -> float:
        return round(sides[f"litellm_{dialect}"] / sides[f"cortex_{dialect}"], 1)

    ttft, chunk = summary["added_ttft_us"], summary["cpu_us_per_chunk"]
    return {
        "added_ttft": {
            n: ratio({name: times["p50"] for name, times in sides.items()})
            for n, sides in ttft.items()
        },
        "cpu_per_request": ratio(summary["cpu_us_per_request"]),
        "cpu_per_chunk": {n: ratio(sides) for n, sides in chunk.items()},
    }


if __name__ == "__main__":
    main()
