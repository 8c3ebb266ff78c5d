"""Batches over pages as they come in real life, for tests with and without a GPU."""

import random

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neuron_agent.engine.forwards.forward import Forward
from neuron_agent.scheduling.batch import Batch, Chunk
from neuron_agent.scheduling.pool import build_pool
from neuron_agent.scheduling.request import Request
from neuron_agent.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.neuron_agent.tiny_models import VOCABULARY_SIZE

TIGHT = SchedulerLimits(step_tokens=10, mixed_tokens=5, reserve_tokens=5)


class Story:
    """Sequences that grow in random steps, told to several forwards at once."""

    def __init__(self, seed: int, num_slots: int, block_tokens: int, vocabulary_size: int) -> None:
        self._random = random.Random(seed)
        self._block_tokens = block_tokens
        self._vocabulary_size = vocabulary_size
        self._num_slots = num_slots
        self._free_blocks = list(range(40))
        self._random.shuffle(self._free_blocks)
        self._num_started = 0
        self._running: dict[int, tuple[str, int, list[int]]] = {}  # slot: name, length, blocks
        self.released: list[int] = []

    def next_batch(self) -> Batch:
        """Some sequences decode, at most one begins; one may have ended before."""
        if self._running and self._random.random() < 0.2:
            slot = self._random.choice(list(self._running))
            self._free_blocks += self._running.pop(slot)[2]
            self.released.append(slot)
        slots = [slot for slot in self._running if self._random.random() < 0.8]
        self._random.shuffle(slots)
        chunks = [self._chunk(slot, 1) for slot in slots if self._running[slot][1] < 20]
        free_slots = [slot for slot in range(self._num_slots) if slot not in self._running]
        if free_slots and (not chunks or self._random.random() < 0.3):
            slot = self._random.choice(free_slots)
            self._num_started += 1
            self._running[slot] = f"request-{self._num_started}", 0, []
            chunks.append(self._chunk(slot, self._random.randint(1, 9)))
        return Batch(tuple(chunks)) if chunks else self.next_batch()

    def _chunk(self, slot: int, num_tokens: int) -> Chunk:
        name, start, blocks = self._running[slot]
        while len(blocks) * self._block_tokens < start + num_tokens:
            blocks.append(self._free_blocks.pop())
        self._running[slot] = name, start + num_tokens, blocks
        ids = tuple(self._random.randrange(self._vocabulary_size) for _ in range(num_tokens))
        room = len(blocks) * self._block_tokens
        return Chunk(name, slot, start, ids, room, start > 0, True, block_ids=blocks)


def last_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]


def greedy(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(last_logits(model, ids).argmax()))
    return ids[len(prompt) :]


def prompts_with_common_beginnings() -> list[list[int]]:
    draw = random.Random(6)
    stem = [draw.randrange(VOCABULARY_SIZE) for _ in range(22)]
    cuts = [22, 9, 14, 0, 22, 18, 6, 11]
    return [
        stem[:cut] + [draw.randrange(VOCABULARY_SIZE) for _ in range(draw.randint(1, 7))]
        for cut in cuts
    ]


def generate(
    forward: Forward,
    prompts: list[list[int]],
    num_tokens: int,
    capacity_tokens: int = 80,
    limits: SchedulerLimits = TIGHT,
) -> tuple[list[list[int]], Scheduler]:
    """Let a scheduler run all prompts at once, with few blocks if nothing else is said."""
    pool = build_pool(
        forward.layout,
        max_running=4,
        capacity_tokens=capacity_tokens,
        block_tokens=forward.block_tokens,
    )
    scheduler = Scheduler(pool, limits)
    requests = [
        Request(str(number), tuple(prompt), num_tokens, frozenset(), float(number))
        for number, prompt in enumerate(prompts)
    ]
    for request in requests:
        scheduler.add(request)
    while (batch := scheduler.schedule(0.0)) is not None:
        for slot in scheduler.take_freed_slots():
            forward.release(slot)
        tokens = forward.compute(batch).logits.argmax(-1).tolist()
        names = [chunk.request_id for chunk in batch.sampled]
        scheduler.update(batch, dict(zip(names, tokens, strict=True)), 0.0)
    scheduler.check_integrity()
    return [request.generated_ids for request in requests], scheduler
