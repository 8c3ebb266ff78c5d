"""All forwards compute one and the same model: transformers', whatever shares their steps."""

import pytest
import torch

from neuron_agent.engine.forwards.selfcheck import agree
from neuron_agent.scheduling.batch import Copy
from tests.neuron_agent.engine.forwards.lanes import (
    assert_same,
    chunk,
    ids_of,
    logits_of,
    new_lane,
    reference,
)

FUSED = ["llama", "llama_tied", "mistral", "qwen2", "qwen3", "qwen3_mixed", "qwen3_yarn"]
PACKED = [*FUSED, "gemma3", "gemma3_mixed"]
PAIRS = [("fused", kind) for kind in FUSED] + [("packed", kind) for kind in PACKED]
PIECES = ((13, 9, 1, 14, 1, 1), (3, 1, 7, 2, 1, 6), (1, 1, 1, 20, 8, 1))
"""How three sequences are cut: across windows of 8 tokens, decoding beside long pieces."""


@pytest.mark.parametrize(("lane", "kind"), PAIRS)
def test_packed_steps_give_what_each_sequence_gives_alone(lane: str, kind: str) -> None:
    forward = new_lane(lane, kind)
    sequences = [ids_of(number, sum(pieces)) for number, pieces in enumerate(PIECES)]
    ends = [0, 0, 0]
    for sizes in zip(*PIECES, strict=True):
        starts, ends = ends, [end + size for end, size in zip(ends, sizes, strict=True)]
        logits = logits_of(
            forward,
            *(chunk(slot, sequences[slot], starts[slot], ends[slot]) for slot in range(3)),
        )
        for slot, end in enumerate(ends):
            assert_same(logits[slot], reference(kind, sequences[slot])[end - 1])


@pytest.mark.parametrize(("lane", "kind"), PAIRS)
def test_a_copied_prefix_continues_as_if_computed(lane: str, kind: str) -> None:
    forward = new_lane(lane, kind)
    first, second = ids_of(1, 30), ids_of(1, 20) + ids_of(2, 9)
    logits_of(forward, chunk(0, first, 0, 25))
    logits = logits_of(
        forward, chunk(0, first, 25, 30), chunk(1, second, 20, 29), copies=(Copy(0, 1, 20),)
    )
    assert_same(logits[0], reference(kind, first)[-1])
    assert_same(logits[1], reference(kind, second)[-1])


@pytest.mark.parametrize("kind", ["lfm2", "mamba", "gemma2", "gemma3_mixed", "mistral"])
def test_the_slow_lane_gives_the_same(kind: str) -> None:
    forward = new_lane("slow", kind)
    sequences = [ids_of(number, length) for number, length in enumerate((21, 14))]
    prompts = [chunk(slot, ids, 0, len(ids) - 3) for slot, ids in enumerate(sequences)]
    logits = logits_of(forward, *prompts)
    for back in (3, 2, 1):
        decodes = [
            chunk(slot, ids, len(ids) - back, len(ids) - back + 1)
            for slot, ids in enumerate(sequences)
        ]
        for slot, ids in enumerate(sequences):
            assert_same(logits[slot], reference(kind, ids)[len(ids) - back - 1])
        logits = logits_of(forward, *decodes)
    for slot, ids in enumerate(sequences):
        assert_same(logits[slot], reference(kind, ids)[-1])


@pytest.mark.parametrize(("lane", "kind"), [("fused", "qwen3"), ("packed", "gemma3")])
def test_a_crowd_changes_nothing(lane: str, kind: str) -> None:
    crowd, alone = new_lane(lane, kind), new_lane(lane, kind)
    sequences = [ids_of(number, 5 + 3 * number) for number in range(12)]
    together = logits_of(
        crowd, *(chunk(slot, ids, 0, len(ids)) for slot, ids in enumerate(sequences))
    )
    for slot, ids in enumerate(sequences):
        own = logits_of(alone, chunk(slot, ids, 0, len(ids)))[0]
        assert_same(together[slot], own, tolerance=1e-4)
        assert together[slot].argmax() == own.argmax()


@pytest.mark.parametrize(("lane", "kind"), [("fused", "llama"), ("packed", "llama")])
def test_a_step_that_is_repeated_gives_the_same_again(lane: str, kind: str) -> None:
    forward = new_lane(lane, kind)
    ids = ids_of(3, 12)
    logits_of(forward, chunk(0, ids, 0, 7))
    first = logits_of(forward, chunk(0, ids, 7, 12))
    assert torch.equal(logits_of(forward, chunk(0, ids, 7, 12)), first)
    assert agree(first, reference(kind, ids)[-1:])
