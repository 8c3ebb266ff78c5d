"""Which attention a layer gets; and whole models over pages, on the CPU."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from neuron_agent.engine.cuda.graphs import GraphedForward
from neuron_agent.engine.cuda.paged import FastKernels
from neuron_agent.engine.cuda.paged_attention import Pages, plain_decode, plain_prefill
from neuron_agent.engine.cuda.paged_cache import PagedCache
from neuron_agent.engine.forwards.forward import Forward, PackedForward
from neuron_agent.engine.forwards.fused import FusedForward
from neuron_agent.scheduling.batch import Batch, Chunk
from tests.neuron_agent.engine.cuda.eager_capture import EagerCapture
from tests.neuron_agent.engine.cuda.paged_stories import (
    TIGHT,
    generate,
    greedy,
    last_logits,
    prompts_with_common_beginnings,
)
from tests.neuron_agent.engine.workbench import engine_over, submit, tokens
from tests.neuron_agent.tiny_models import VOCABULARY_SIZE, build_tiny

CPU = torch.device("cpu")
PAGES = Pages(torch.zeros(3, 16, 2, 8), torch.zeros(3, 16, 2, 8))
NUM_HEADS = 6


class Fast:
    """Changes what plain attention gives, or the arguments it gets."""

    def __init__(
        self,
        plain: Callable[..., Tensor],
        change: Callable[[Tensor], Tensor] = lambda out: out,
        *,
        is_suited: bool = True,
        knows_windows: bool = True,
    ) -> None:
        self._plain = plain
        self._change = change
        self._is_suited = is_suited
        self._knows_windows = knows_windows
        self.num_calls = 0

    def suits(self, pages: Pages) -> bool:
        return self._is_suited

    def __call__(self, *arguments: Any) -> Tensor:
        self.num_calls += 1
        *others, window = arguments
        return self._change(self._plain(*others, window if self._knows_windows else None))


def fail(_out: Tensor) -> Tensor:
    raise FileNotFoundError("no C compiler")


def test_fast_attention_that_is_right_is_chosen_and_tried_once() -> None:
    decode, prefill = Fast(plain_decode), Fast(plain_prefill, lambda out: out + 1e-5)
    choose = FastKernels(decode, prefill)
    with capture_logs() as logs:
        chosen = choose(PAGES, NUM_HEADS)
    assert (chosen.decode, chosen.prefill) == (decode, prefill)
    assert logs == []
    num_calls = decode.num_calls
    assert choose(PAGES, NUM_HEADS) is chosen
    assert decode.num_calls == num_calls
    assert choose(Pages(PAGES.keys[..., :4], PAGES.values[..., :4]), NUM_HEADS) is not chosen


@pytest.mark.parametrize(
    ("change", "event"),
    [
        (fail, "attention_kernel_failed"),
        (lambda out: out + 0.01, "attention_kernel_wrong"),
        (lambda out: out * float("nan"), "attention_kernel_wrong"),
    ],
)
def test_fast_attention_that_fails_or_is_wrong_gives_way_and_it_is_said(
    change: Callable[[Tensor], Tensor], event: str
) -> None:
    with capture_logs() as logs:
        chosen = FastKernels(Fast(plain_decode, change), Fast(plain_prefill, change))(
            PAGES, NUM_HEADS
        )
    assert (chosen.decode, chosen.prefill) == (plain_decode, plain_prefill)
    assert [log["event"] for log in logs] == [event, event]


def test_fast_attention_that_knows_no_windows_is_found_out() -> None:
    decode = Fast(plain_decode, knows_windows=False)
    prefill = Fast(plain_prefill, knows_windows=False)
    chosen = FastKernels(decode, prefill)(PAGES, NUM_HEADS)
    assert (chosen.decode, chosen.prefill) == (plain_decode, plain_prefill)


def test_what_is_not_made_for_a_layer_is_not_tried() -> None:
    decode = Fast(plain_decode, is_suited=False)
    chosen = FastKernels(decode, None)(PAGES, NUM_HEADS)
    assert (chosen.decode, chosen.prefill) == (plain_decode, plain_prefill)
    assert decode.num_calls == 0


# --- whole models ------------------------------------------------------------------------------


def chunk(name: str, slot: int, ids: list[int], start: int, blocks: list[int]) -> Chunk:
    return Chunk(
        name, slot, start, tuple(ids[start:]), 64, len(ids) - start == 1, True, block_ids=blocks
    )


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3"])
@torch.inference_mode()
def test_models_over_pages_give_what_transformers_gives(kind: str) -> None:
    expected_by = build_tiny(kind)
    forward: Forward = PackedForward(build_tiny(kind), PagedCache(CPU, block_tokens=4))
    generator = torch.Generator().manual_seed(4)
    one, two = (torch.randint(VOCABULARY_SIZE, (20,), generator=generator).tolist() for _ in "12")
    one_blocks, two_blocks = [8, 1, 5, 3, 0], [2, 9, 4, 11, 10]
    steps = [
        [("one", 0, one[:11], 0, one_blocks)],
        [("one", 0, one[:12], 11, one_blocks), ("two", 1, two[:5], 0, two_blocks)],
        [("one", 0, one[:13], 12, one_blocks), ("two", 1, two[:18], 5, two_blocks)],
        [("two", 1, two[:19], 18, two_blocks), ("one", 0, one[:14], 13, one_blocks)],
    ]
    for step in steps:
        computed = forward.compute(Batch(tuple(chunk(*piece) for piece in step)))
        exact = torch.stack([last_logits(expected_by, piece[2]) for piece in step])
        torch.testing.assert_close(computed.logits, exact, atol=1e-4, rtol=1e-4)
    forward.close()


def packed_forward(kind: str, _max_in_flight: int) -> Forward:
    return PackedForward(build_tiny(kind), PagedCache(CPU, block_tokens=4))


def fused_forward(kind: str, _max_in_flight: int) -> Forward:
    return FusedForward(build_tiny(kind), PagedCache(CPU, block_tokens=4))


def graphed_forward(kind: str, max_in_flight: int) -> Forward:
    fused = FusedForward(build_tiny(kind), PagedCache(CPU, block_tokens=4))
    # The layers' memory is there before anything is recorded, as after a load's self-check.
    fused.compute(Batch((Chunk("r", 0, 0, (1, 2), 4, False, True, block_ids=[0]),)))
    fused.reserve(80)
    graphed = GraphedForward(fused, fused.cache, EagerCapture())
    graphed.warm_up(max_in_flight)
    return graphed


@pytest.mark.parametrize("build", [packed_forward, fused_forward, graphed_forward])
@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
@torch.inference_mode()
def test_shared_copied_and_preempted_sequences_say_what_each_says_alone(
    kind: str, build: Callable[[str, int], Forward]
) -> None:
    prompts = prompts_with_common_beginnings()
    forward = build(kind, 4)
    if not isinstance(forward, GraphedForward):
        forward.reserve(80)
    generated, scheduler = generate(forward, prompts, 18)
    assert scheduler.num_preemptions > 0
    assert scheduler.prefix_hit_ratio > 0.1
    model = build_tiny(kind)
    assert generated == [greedy(model, prompt, 18) for prompt in prompts]


def test_an_engine_over_pages_takes_the_large_steps_of_a_gpu() -> None:
    forward = PackedForward(build_tiny("qwen3"), PagedCache(CPU))
    forward.reserve(1024)
    engine = engine_over(forward, kv_tokens=1024)
    prompt = [place % VOCABULARY_SIZE for place in range(300)]  # more than a step of a CPU
    engine.add(submit("a", prompt))
    (output,) = engine.step()
    assert output.token_ids == greedy(build_tiny("qwen3"), prompt, 1)


@pytest.mark.parametrize("build", [packed_forward, graphed_forward])
def test_steps_that_fail_half_way_cost_nobody_a_token(
    build: Callable[[str, int], Forward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated step finds copies, shared blocks and preempted sequences as they were."""
    with torch.inference_mode():
        forward = build("qwen3", 4)
    attend, draw = PagedCache.attend, random.Random(3)
    num_failed = 0

    def flaky(cache: PagedCache, layer: int, *arguments: Any) -> Tensor:
        nonlocal num_failed
        if layer == 1 and draw.random() < 0.2:
            num_failed += 1
            raise RuntimeError("failed half-way")
        return attend(cache, layer, *arguments)

    if not isinstance(forward, GraphedForward):
        forward.reserve(80)
    monkeypatch.setattr(PagedCache, "attend", flaky)
    engine = engine_over(forward, kv_tokens=80, max_in_flight=4, scheduling=TIGHT)
    prompts = prompts_with_common_beginnings()
    for number, prompt in enumerate(prompts):
        engine.add(submit(str(number), prompt, 18))
    said: dict[str, list[int]] = {str(number): [] for number in range(len(prompts))}
    while engine.has_work:
        try:
            outputs = engine.step()
        except RuntimeError:
            continue
        for output in outputs:
            said[output.request_id] += tokens([output])
        engine.check_integrity()
    monkeypatch.undo()
    model = build_tiny("qwen3")
    assert num_failed > 5
    assert list(said.values()) == [greedy(model, prompt, 18) for prompt in prompts]
