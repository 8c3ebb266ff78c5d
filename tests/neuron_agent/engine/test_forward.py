import pytest
import torch

from neuron_agent.engine.forward import PackedForward, SequenceFailed, SlowLane
from neuron_agent.scheduling.batch import Batch, Chunk
from tests.neuron_agent.tiny_models import build_tiny

IDS = ((5, 6, 7), (8, 9))


def batch_of(start: int, end: int, sampled: tuple[bool, ...] = (True, True)) -> Batch:
    return Batch(
        tuple(
            Chunk(str(slot), slot, start, ids[start:end], 100, False, sampled[slot])
            for slot, ids in enumerate(IDS)
            if ids[start:end]
        )
    )


@torch.inference_mode()
def alone(kind: str, ids: tuple[int, ...]) -> torch.Tensor:
    logits: torch.Tensor = build_tiny(kind)(input_ids=torch.tensor([ids])).logits[0, -1]
    return logits


@pytest.mark.parametrize(("kind", "lane"), [("qwen3", PackedForward), ("gemma3", SlowLane)])
@torch.inference_mode()
def test_only_sampled_chunks_give_logits(kind: str, lane: type[PackedForward | SlowLane]) -> None:
    forward = lane(build_tiny(kind))
    logits = forward.logits(batch_of(0, 3, sampled=(False, True)))
    assert logits.shape[0] == 1
    torch.testing.assert_close(logits[0], alone(kind, IDS[1]), atol=1e-4, rtol=1e-4)
    assert forward.logits(batch_of(0, 3, sampled=(False, False))).shape[0] == 0


@torch.inference_mode()
def test_in_the_slow_lane_a_failure_spoils_one_sequence_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first sequence went ahead before the second failed; it must not go ahead twice."""
    model = build_tiny("gemma3")
    forward = SlowLane(model)
    forward.logits(batch_of(0, 1))
    healthy = model.forward

    def fail_on_the_second(**inputs: torch.Tensor) -> object:
        if int(inputs["input_ids"][0, 0]) == IDS[1][1]:
            raise RuntimeError("failed")
        return healthy(**inputs)

    monkeypatch.setattr(model, "forward", fail_on_the_second)
    with pytest.raises(SequenceFailed) as caught:
        forward.logits(batch_of(1, 2))
    assert caught.value.request_id == "1"
    monkeypatch.undo()
    first_alone = Batch(batch_of(1, 2).chunks[:1])
    repeated = forward.logits(first_alone)[0]
    torch.testing.assert_close(repeated, alone("gemma3", IDS[0][:2]), atol=1e-4, rtol=1e-4)
    continued = forward.logits(batch_of(2, 3))[0]
    torch.testing.assert_close(continued, alone("gemma3", IDS[0]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_released_slot_starts_anew() -> None:
    forward = SlowLane(build_tiny("gemma3"))
    first = Batch((Chunk("a", 0, 0, (5, 6), 100, False, True),))
    second = Batch((Chunk("b", 0, 0, (8, 9), 100, False, True),))
    forward.logits(first)
    forward.release(0)
    logits = forward.logits(second)[0]
    torch.testing.assert_close(logits, alone("gemma3", (8, 9)), atol=1e-4, rtol=1e-4)
