"""For tests of forwards: models whose every weight matters, and what transformers says of them."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neuron_agent.engine.forwards.forward import Forward, PackedForward, SlowLane
from neuron_agent.engine.forwards.fused import FusedForward
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from tests.neuron_agent.tiny_models import VOCABULARY_SIZE, build_tiny

LANES = {
    "fused": lambda model: FusedForward(model, SlotCache()),
    "packed": lambda model: PackedForward(model, SlotCache()),
    "slow": SlowLane,
}


def varied(kind: str) -> PreTrainedModel:
    """A tiny model with biases that are not zero and norms that are not one."""
    model = build_tiny(kind).requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def new_lane(lane: str, kind: str) -> Forward:
    forward: Forward = LANES[lane](varied(kind))
    return forward


def ids_of(number: int, length: int) -> tuple[int, ...]:
    """A sequence of its own for each number."""
    return tuple((31 * number + 17 * place + place**2) % VOCABULARY_SIZE for place in range(length))


@cache
@torch.inference_mode()
def reference(kind: str, ids: tuple[int, ...]) -> Tensor:
    """transformers' own logits [T, V] of a sequence alone."""
    logits: Tensor = varied(kind)(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def chunk(slot: int, ids: Sequence[int], start: int, end: int, *, sampled: bool = True) -> Chunk:
    return Chunk(str(slot), slot, start, tuple(ids[start:end]), len(ids), end - start == 1, sampled)


@torch.inference_mode()
def logits_of(forward: Forward, *chunks: Chunk, copies: tuple[Copy, ...] = ()) -> Tensor:
    return forward.compute(Batch(chunks, copies)).logits


def assert_same(ours: Tensor, expected: Tensor, tolerance: float = 3e-4) -> None:
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)
