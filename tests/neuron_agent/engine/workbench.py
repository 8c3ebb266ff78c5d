"""Engines for tests: loaded from tiny folders, driven step by step in the test's own thread."""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel

from neuron_agent.devices.channel import LoadModel, Output, Sampling, Submit
from neuron_agent.engine.engine import Engine, EngineLimits
from neuron_agent.engine.forwards.forward import Forward
from neuron_agent.engine.loading.loader import LoadContext, load_engine
from neuron_agent.engine.sampling.grammar import GrammarCompiler
from neuron_agent.scheduling.scheduler import SchedulerLimits
from tests.neuron_agent.tiny_models import CONTEXT_TOKENS, VOCABULARY_SIZE, build_tiny

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0.0)
PROMPTS = [
    [(7 * place + 13 * length) % VOCABULARY_SIZE for place in range(length)]
    for length in (1, 5, 40, 290, 17, 70)
]
"""Of mixed lengths; one is longer than a step's token budget."""
CROWD = [
    ([(11 * place + 17 * number) % VOCABULARY_SIZE for place in range(1 + 9 * number)], num_tokens)
    for number, num_tokens in enumerate([3, 24, 9, 6] * 8)
]
"""Thirty-two prompts of 1 to 280 tokens, and how many tokens to generate for each."""


class Ticks:
    """A clock: each look at it is a second later."""

    def __init__(self) -> None:
        self._seconds = count()

    def __call__(self) -> float:
        return float(next(self._seconds))


def load(folder: Path, free_bytes: int = 10**9, **options: object) -> Engine:
    stages: list[str] = []
    context = LoadContext(
        CPU, lambda: free_bytes, Ticks(), lambda stage, *_numbers: stages.append(stage)
    )
    options.setdefault("dtype", "float32")
    engine = load_engine(LoadModel("m", str(folder), **options), context)  # type: ignore[arg-type]
    assert stages == ["reading", "preparing", "warming"]
    return engine


def engine_over(
    forward: Forward,
    kv_tokens: int = 4096,
    max_in_flight: int = 8,
    scheduling: SchedulerLimits | None = None,
    grammars: GrammarCompiler | None = None,
    vocabulary_size: int = VOCABULARY_SIZE,
    clock: Callable[[], float] | None = None,
) -> Engine:
    limits = EngineLimits(CONTEXT_TOKENS, kv_tokens, vocabulary_size, max_in_flight)
    seeds = count(1000)
    return Engine(
        "m",
        forward,
        limits,
        clock=clock or Ticks(),
        fresh_seed=lambda: next(seeds),
        scheduling=scheduling,
        grammars=grammars,
    )


def submit(
    name: str,
    prompt: list[int],
    max_tokens: int = 12,
    sampling: Sampling = GREEDY,
    stop_ids: Iterable[int] = (),
) -> Submit:
    return Submit(name, "m", prompt, max_tokens, list(stop_ids), sampling)


def run(engine: Engine, *submits: Submit) -> dict[str, list[Output]]:
    """Add requests, step until all have ended; return each one's outputs."""
    for one in submits:
        engine.add(one)
    outputs: dict[str, list[Output]] = {one.request_id: [] for one in submits}
    while engine.has_work:
        for output in engine.step():
            outputs[output.request_id].append(output)
        engine.check_integrity()
    return outputs


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@cache
def _reference_model(kind: str) -> PreTrainedModel:
    return build_tiny(kind)


@cache
def reference(kind: str, prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """What transformers' own generate() gives at temperature 0."""
    with torch.no_grad():
        ids = _reference_model(kind).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    new_ids: list[int] = ids[0, len(prompt) :].tolist()
    return new_ids
