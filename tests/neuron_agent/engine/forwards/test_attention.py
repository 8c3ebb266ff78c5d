import threading

import pytest
import torch
from torch import Tensor, nn

from neuron_agent.engine.forwards.attention import (
    REFUSED_ARGUMENTS,
    StepContext,
    UnsupportedAttention,
    attend_packed,
    step_context,
)
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk

HEAD_SIZE = 8
NUM_TOKENS = 4


class Layer(nn.Module):
    layer_idx = 3


def begun_context() -> StepContext:
    cache = SlotCache()
    ids = (0,) * NUM_TOKENS
    cache.begin(Batch((Chunk("a", 0, 0, ids, 10, is_decode=False, is_sampled=True),)))
    return StepContext(cache)


def random_heads() -> list[Tensor]:
    """Query, key and value as transformers hands them over: [1, heads, T, D]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, n, NUM_TOKENS, HEAD_SIZE, generator=generator) for n in (4, 2, 2)]


def test_a_layer_attends_over_the_steps_cache_and_says_which_window_it_asked_for() -> None:
    query, key, value = random_heads()
    context = begun_context()
    with step_context(context):
        out, _ = attend_packed(Layer(), query, key, value, None, sliding_window=2)
    expected = begun_context().cache.attend(
        3, *(heads[0].transpose(0, 1) for heads in (query, key, value)), HEAD_SIZE**-0.5, 2
    )
    assert torch.equal(out[0], expected)
    assert context.windows == {3: 2}


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_what_is_not_done_here_is_refused(name: str) -> None:
    with step_context(begun_context()), pytest.raises(UnsupportedAttention, match=name):
        attend_packed(Layer(), *random_heads(), None, **{name: 8})


def test_a_mask_and_a_look_ahead_are_refused() -> None:
    ahead = Layer()
    ahead.is_causal = False
    with step_context(begun_context()):
        with pytest.raises(UnsupportedAttention):
            attend_packed(ahead, *random_heads(), None)
        with pytest.raises(UnsupportedAttention):
            attend_packed(Layer(), *random_heads(), torch.zeros(1))


def test_a_context_belongs_to_its_thread_and_its_step() -> None:
    raised: list[type[Exception]] = []

    def attend_elsewhere() -> None:
        try:
            attend_packed(Layer(), *random_heads(), None)
        except AttributeError as error:
            raised.append(type(error))

    with step_context(begun_context()):
        thread = threading.Thread(target=attend_elsewhere)
        thread.start()
        thread.join()
    attend_elsewhere()
    assert raised == [AttributeError, AttributeError]
