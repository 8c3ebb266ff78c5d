"""transformers without a server, in a process of its own: `generate`, or its continuous batching.

    python in_process.py generate|batching MODEL_FOLDER

Each line of its input is a JSON object {"jobs": [[prompt_ids, num_tokens], ...], "clients": n};
for each it prints one line, a list with [sent_at, [arrived_at, ...]] of each job. `generate` takes
the jobs one after the other, whatever the number of clients.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
)

Job = tuple[list[int], int]
Timing = tuple[float, list[float]]
PAGE_TOKENS = 64
NUM_PAGES = 400
TOKENS_A_STEP = 512
NO_TOKEN = -1
"""As the end of a text: no token is it."""


class _Clock:
    """Stands where `generate` wants a streamer: notes when tokens come, the prompt left out."""

    def __init__(self) -> None:
        self.arrived_at: list[float] = []
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt:
            self.arrived_at.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        """Nothing is held back that would have to be given out."""


def generate_all(model: PreTrainedModel, jobs: list[Job]) -> list[Timing]:
    timings = []
    for prompt_ids, num_tokens in jobs:
        clock = _Clock()
        sent_at = time.perf_counter()
        model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            generation_config=GenerationConfig(
                max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            ),
            streamer=clock,
        )
        timings.append((sent_at, clock.arrived_at))
    return timings


def start_batching(model: PreTrainedModel) -> Any:
    """Return transformers' manager of continuous batching, running."""
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            max_new_tokens=1, do_sample=False, eos_token_id=NO_TOKEN, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=NUM_PAGES,
            max_batch_tokens=TOKENS_A_STEP,
            allow_block_sharing=False,
        ),
    )
    manager.start()
    return manager


def batch_all(manager: Any, jobs: list[Job], num_clients: int) -> list[Timing]:
    """Keep `num_clients` jobs running until all are done."""
    left: Iterator[Job] = iter(jobs)
    running: dict[str, Timing] = {}
    num_seen: dict[str, int] = {}
    timings: list[Timing] = []

    def submit() -> None:
        job = next(left, None)
        if job is None:
            return
        sent_at = time.perf_counter()
        name = manager.add_request(
            job[0], max_new_tokens=job[1], streaming=True, eos_token_id=NO_TOKEN
        )
        running[name], num_seen[name] = (sent_at, []), 0

    for _ in range(num_clients):
        submit()
    while running:
        result = manager.get_result(timeout=60)
        if result is None or result.error:
            raise SystemExit(f"continuous batching failed: {result and result.error}")
        name = result.request_id
        num_new = len(result.generated_tokens) - num_seen[name]
        num_seen[name] += num_new
        running[name][1].extend([time.perf_counter()] * num_new)
        if result.is_finished():
            timings.append(running.pop(name))
            submit()
    return timings


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    run: Callable[[list[Job], int], list[Timing]]
    if kind == "generate":
        run = lambda jobs, _: generate_all(model, jobs)  # noqa: E731
    else:
        manager = start_batching(model)
        run = lambda jobs, num_clients: batch_all(manager, jobs, num_clients)  # noqa: E731
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(run(asked["jobs"], asked["clients"])), flush=True)


if __name__ == "__main__":
    main()
