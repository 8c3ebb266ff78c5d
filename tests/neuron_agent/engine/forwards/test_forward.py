import pytest
import torch
from torch import Tensor

from neuron_agent.engine.forwards.forward import (
    Forward,
    PackedForward,
    SequenceFailed,
    SlowLane,
    pack,
)
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk
from tests.neuron_agent.tiny_models import build_tiny

IDS = ((5, 6, 7), (8, 9))
LANES = [("qwen3", "packed"), ("gemma3", "packed"), ("gemma3", "slow"), ("lfm2", "slow")]


def new_forward(kind: str, lane: str) -> PackedForward | SlowLane:
    model = build_tiny(kind)
    return SlowLane(model) if lane == "slow" else PackedForward(model, SlotCache())


def batch_of(
    start: int,
    end: int,
    sampled: tuple[bool, ...] = (True, True),
    embedded: tuple[bool, ...] = (False, False),
) -> Batch:
    return Batch(
        tuple(
            Chunk(str(slot), slot, start, ids[start:end], 100, False, sampled[slot], embedded[slot])
            for slot, ids in enumerate(IDS)
            if ids[start:end]
        )
    )


@torch.inference_mode()
def alone(kind: str, ids: tuple[int, ...]) -> Tensor:
    logits: Tensor = build_tiny(kind)(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits


@torch.inference_mode()
def hidden_alone(kind: str, ids: tuple[int, ...]) -> Tensor:
    hidden: Tensor = build_tiny(kind).model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return hidden


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "lane"), LANES)
@torch.inference_mode()
def test_only_sampled_chunks_give_logits(kind: str, lane: str) -> None:
    forward: Forward = new_forward(kind, lane)
    logits = forward.compute(batch_of(0, 3, sampled=(False, True))).logits
    assert logits.shape[0] == 1
    assert_same(logits[0], alone(kind, IDS[1]))
    none = forward.compute(batch_of(0, 3, sampled=(False, False)))
    assert none.logits.shape == (0, logits.shape[1])
    assert none.hidden.shape[0] == 0


@pytest.mark.parametrize(("kind", "lane"), LANES)
@torch.inference_mode()
def test_an_embedded_chunk_gives_what_goes_into_the_head(kind: str, lane: str) -> None:
    forward = new_forward(kind, lane)
    computed = forward.compute(batch_of(0, 3, sampled=(False, True), embedded=(True, False)))
    assert_same(computed.logits, alone(kind, IDS[1]).unsqueeze(0))
    assert_same(computed.hidden, hidden_alone(kind, IDS[0]).unsqueeze(0))


@torch.inference_mode()
def test_a_model_without_an_output_head_of_its_own_fails_the_embedding_alone() -> None:
    model = build_tiny("qwen3")
    model.get_output_embeddings = lambda: None
    for forward in (PackedForward(model, SlotCache()),):
        with pytest.raises(SequenceFailed) as caught:
            forward.compute(batch_of(0, 3, sampled=(False, True), embedded=(True, False)))
        assert caught.value.request_id == "0"
        assert_same(forward.compute(batch_of(0, 3)).logits[1], alone("qwen3", IDS[1]))


@torch.inference_mode()
def test_in_the_slow_lane_a_failure_spoils_one_sequence_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first sequence went ahead before the second failed; it must not go ahead twice."""
    model = build_tiny("lfm2")
    forward = SlowLane(model)
    forward.compute(batch_of(0, 1))
    healthy = model.forward

    def fail_on_the_second(**inputs: Tensor) -> object:
        if int(inputs["input_ids"][0, 0]) == IDS[1][1]:
            raise RuntimeError("failed")
        return healthy(**inputs)

    monkeypatch.setattr(model, "forward", fail_on_the_second)
    with pytest.raises(SequenceFailed) as caught:
        forward.compute(batch_of(1, 2))
    assert caught.value.request_id == "1"
    monkeypatch.undo()
    first_alone = Batch(batch_of(1, 2).chunks[:1])
    assert_same(forward.compute(first_alone).logits[0], alone("lfm2", IDS[0][:2]))
    assert_same(forward.compute(batch_of(2, 3)).logits[0], alone("lfm2", IDS[0]))


@pytest.mark.parametrize(("kind", "lane"), LANES)
@torch.inference_mode()
def test_a_released_slot_starts_anew(kind: str, lane: str) -> None:
    forward = new_forward(kind, lane)
    forward.compute(Batch((Chunk("a", 0, 0, (5, 6), 100, False, True),)))
    forward.release(0)
    logits = forward.compute(Batch((Chunk("b", 0, 0, (8, 9), 100, False, True),))).logits[0]
    assert_same(logits, alone(kind, (8, 9)))


def test_rows_are_those_of_sampled_chunks_then_of_embedded_ones() -> None:
    chunks = (
        Chunk("a", 0, 4, (1, 2), 9, False, False, is_embedded=True),
        Chunk("b", 1, 0, (3, 4, 5), 9, False, False),
        Chunk("c", 2, 7, (6,), 9, True, True),
    )
    packed = pack(Batch(chunks), torch.device("cpu"))
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.positions.tolist() == [4, 5, 0, 1, 2, 7]
    assert packed.rows.tolist() == [5, 1]
    assert packed.num_sampled == 1


def test_a_closed_forward_lets_go_of_the_model() -> None:
    model = build_tiny("qwen3")
    forwards: list[Forward] = [PackedForward(model, SlotCache()), SlowLane(model)]
    for forward in forwards:
        forward.close()
    assert not model.get_output_embeddings()._forward_pre_hooks
