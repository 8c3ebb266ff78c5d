"""The CUDA path on a real GPU: kernels, recorded steps, whole models. Skipped where there is none.

On a machine with only torch, transformers, pytest, msgspec and structlog:
`python -m pytest -c /dev/null --rootdir . --noconftest tests/neuron_agent/engine/cuda`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.cuda.graphs import CudaCapture, GraphedForward, graph_sizes
from neuron_agent.engine.cuda.paged import new_cuda_cache
from neuron_agent.engine.cuda.paged_attention import Pages, plain_decode, plain_prefill
from neuron_agent.engine.cuda.paged_cache import PagedCache
from neuron_agent.engine.cuda.varlen_prefill import find_varlen
from neuron_agent.engine.forwards.choice import choose_forward
from neuron_agent.engine.forwards.forward import Forward
from neuron_agent.engine.forwards.fused import FusedForward
from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.scheduler import SchedulerLimits
from tests.neuron_agent.engine.cuda.decode_cases import CASES, Case, largest_error, tolerance
from tests.neuron_agent.engine.cuda.paged_stories import (
    Story,
    generate,
    greedy,
    last_logits,
    prompts_with_common_beginnings,
)
from tests.neuron_agent.tiny_models import VOCABULARY_SIZE, build_tiny, save_tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda", 0)
BLOCK_TOKENS = 64
LARGE = Case(
    lengths=(1, 64, 4095, 777),
    num_shared_heads=8,
    group=4,
    size=128,
    block_tokens=BLOCK_TOKENS,
    num_processors=132,
)
LARGE_CASES = {
    "long": LARGE,
    "long_windowed": replace(LARGE, window=1000),
    "long_bfloat16": replace(LARGE, dtype=torch.bfloat16),
    "long_float16": replace(LARGE, dtype=torch.float16),
    "crowd": replace(LARGE, lengths=tuple(range(1, 257)), num_shared_heads=2, size=64),
    "crowd_bfloat16": replace(
        LARGE, lengths=tuple(range(1, 257)), num_shared_heads=2, size=64, dtype=torch.bfloat16
    ),
    "large_heads": replace(LARGE, size=256, num_shared_heads=2),
    "large_heads_bfloat16": replace(LARGE, size=256, num_shared_heads=2, dtype=torch.bfloat16),
    "odd_heads_bfloat16": replace(LARGE, size=80, group=5, dtype=torch.bfloat16),
}


@pytest.fixture(autouse=True)
def _device_thread() -> Iterator[None]:
    with torch.inference_mode():
        yield


# --- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CASES, *LARGE_CASES])
def test_decode_kernels_give_what_plain_attention_gives(name: str) -> None:
    case = CASES.get(name) or LARGE_CASES[name]
    assert largest_error(case, GPU) <= tolerance(case.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [16, 64, 80, 128, 256])
def test_fast_attention_is_chosen_for_half_precision(dtype: torch.dtype, size: int) -> None:
    assert find_varlen() is not None, "this torch has no kernel for prompts"
    kernels = new_cuda_cache(GPU)._choose_kernels(_pages(size, dtype), 8)
    assert kernels.decode is not plain_decode
    assert kernels.prefill is not plain_prefill


def test_decode_is_fast_in_full_precision_too() -> None:
    kernels = new_cuda_cache(GPU)._choose_kernels(_pages(64, torch.float32), 8)
    assert kernels.decode is not plain_decode
    assert kernels.prefill is plain_prefill


def _pages(size: int, dtype: torch.dtype) -> Pages:
    zeros = torch.zeros(2, BLOCK_TOKENS, 2, size, dtype=dtype, device=GPU)
    return Pages(zeros, zeros.clone())


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("seed", range(3))
def test_fast_attention_over_a_cache_is_that_of_a_plain_one(seed: int, window: int | None) -> None:
    fast, plain = new_cuda_cache(GPU), PagedCache(GPU)
    for cache in (fast, plain):
        cache.reserve(40 * BLOCK_TOKENS)
    story = Story(seed, 8, BLOCK_TOKENS, VOCABULARY_SIZE)
    torch.manual_seed(seed)
    for _ in range(40):
        batch = story.next_batch()
        given = _random_heads(sum(len(chunk.token_ids) for chunk in batch.chunks))
        fast.begin(batch)
        plain.begin(batch)
        torch.testing.assert_close(
            fast.attend(0, *given, 0.125, window),
            plain.attend(0, *given, 0.125, window),
            atol=2e-2,
            rtol=2e-2,
        )


def _random_heads(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = torch.randn(num_tokens, 12, 64, device=GPU).bfloat16()
    return heads[:, :8], heads[:, 8:10], heads[:, 10:]


# --- recorded steps ----------------------------------------------------------------------------


def _graphed(dtype: torch.dtype, max_in_flight: int) -> GraphedForward:
    fused = FusedForward(build_tiny("qwen3").to(GPU, dtype), new_cuda_cache(GPU))
    story = Story(0, 8, BLOCK_TOKENS, VOCABULARY_SIZE)
    fused.reserve(40 * BLOCK_TOKENS)
    fused.compute(story.next_batch())  # layers are known before they are recorded
    graphed = GraphedForward(fused, fused.cache, CudaCapture())  # type: ignore[arg-type]
    graphed.warm_up(max_in_flight)
    assert graphed.graph_rows == graph_sizes(max_in_flight), "recording failed"
    return graphed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replayed_steps_give_what_ordinary_steps_give(dtype: torch.dtype) -> None:
    graphed = _graphed(dtype, max_in_flight=8)
    plain = FusedForward(build_tiny("qwen3").to(GPU, dtype), PagedCache(GPU))
    plain.reserve(40 * BLOCK_TOKENS)
    story = Story(11, 8, BLOCK_TOKENS, VOCABULARY_SIZE)
    for _ in range(80):
        batch = story.next_batch()
        for slot in story.released:
            graphed.release(slot)
            plain.release(slot)
        story.released.clear()
        ours, theirs = graphed.compute(batch).logits, plain.compute(batch).logits
        _assert_close(ours, theirs, dtype)


def test_a_replayed_step_waits_for_nothing() -> None:
    graphed = _graphed(torch.bfloat16, max_in_flight=8)
    story = Story(2, 8, BLOCK_TOKENS, VOCABULARY_SIZE)
    batches = [story.next_batch() for _ in range(60)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            graphed.compute(Batch(batch.chunks))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _assert_close(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    if dtype == torch.float32:
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    else:
        similar = torch.cosine_similarity(ours.float(), theirs.float(), dim=-1)
        assert float(similar.min()) > 0.99


# --- whole models ------------------------------------------------------------------------------


def _ready(kind: str, dtype: torch.dtype) -> Forward:
    """As a load leaves it."""
    forward = choose_forward(build_tiny(kind).to(GPU, dtype), dtype).forward
    assert forward.block_tokens == BLOCK_TOKENS
    forward.reserve(8 * BLOCK_TOKENS)
    forward.warm_up(4)
    return forward


def test_llama_like_models_are_recorded() -> None:
    forward = _ready("llama", torch.bfloat16)
    assert isinstance(forward, GraphedForward)
    assert forward.graph_rows == (1, 2, 4)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3"])
def test_sequences_in_a_crowd_say_in_full_precision_what_each_says_alone(kind: str) -> None:
    prompts = [prompt * 4 for prompt in prompts_with_common_beginnings()]
    limits = SchedulerLimits(step_tokens=40, mixed_tokens=20, reserve_tokens=BLOCK_TOKENS)
    forward = _ready(kind, torch.float32)
    generated, _ = generate(forward, prompts, 18, 8 * BLOCK_TOKENS, limits)
    model = build_tiny(kind).to(GPU)
    assert generated == [greedy(model, prompt, 18) for prompt in prompts]


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral", "gemma3"])
def test_half_precision_says_what_the_model_finds_likely(kind: str) -> None:
    """Rounding may turn one token into a nearly as likely one, never into an unlikely one."""
    prompts = prompts_with_common_beginnings()
    limits = SchedulerLimits(step_tokens=40, mixed_tokens=20, reserve_tokens=BLOCK_TOKENS)
    forward = _ready(kind, torch.bfloat16)
    generated, _ = generate(forward, prompts, 12, 8 * BLOCK_TOKENS, limits)
    exact = build_tiny(kind).to(GPU)
    shortfalls = []
    for prompt, tokens in zip(prompts, generated, strict=True):
        for number, token in enumerate(tokens):
            logits = last_logits(exact, prompt + tokens[:number])
            shortfalls.append(float((logits.max() - logits[token]) / logits.std()))
    assert sum(shortfall == 0 for shortfall in shortfalls) > 0.8 * len(shortfalls)
    assert max(shortfalls) < 1.0


def test_a_loaded_engine_generates_what_transformers_does(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    from neuron_agent.devices.channel import LoadModel, Sampling, Submit
    from neuron_agent.engine.loading.loader import LoadContext, load_engine

    folder = save_tiny(tmp_path, "qwen3")
    context = LoadContext(GPU, lambda: 10**9, lambda: 0.0, lambda *_progress: None)
    engine = load_engine(LoadModel("m", str(folder), dtype="float32"), context)
    prompts = {str(n): prompt for n, prompt in enumerate(prompts_with_common_beginnings())}
    for name, prompt in prompts.items():
        engine.add(Submit(name, "m", prompt, 12, [], Sampling(temperature=0.0)))
    said: dict[str, list[int]] = {name: [] for name in prompts}
    while engine.has_work:
        for output in engine.step():
            said[output.request_id] += output.token_ids
    model = build_tiny("qwen3").to(GPU)
    assert said == {name: greedy(model, prompt, 12) for name, prompt in prompts.items()}
    engine.close()
