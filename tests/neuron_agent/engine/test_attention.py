import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neuron_agent.engine.attention import (
    REFUSED_ARGUMENTS,
    StepContext,
    UnsupportedAttention,
    attend_packed,
    step_context,
)
from neuron_agent.engine.kv_slots import KvSlots
from neuron_agent.scheduling.batch import Chunk

HEAD_SIZE = 8


class Layer(nn.Module):
    layer_idx = 0


def chunk(slot: int, start: int, num_tokens: int) -> Chunk:
    ids = (0,) * num_tokens
    return Chunk(str(slot), slot, start, ids, 1000, is_decode=num_tokens == 1, is_sampled=True)


def random_heads(num_heads: int, num_tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_heads, num_tokens, HEAD_SIZE, generator=generator)


def packed(cache: KvSlots, chunks: list[Chunk], *heads: torch.Tensor) -> torch.Tensor:
    with step_context(StepContext(cache, tuple(chunks))):
        return attend_packed(Layer(), *heads, attention_mask=None)[0]


@given(
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    num_shared=st.sampled_from([1, 2]),
    num_groups=st.sampled_from([1, 3]),
)
def test_pieces_attend_as_the_whole_does_beside_any_neighbour(
    pieces: list[int], num_shared: int, num_groups: int
) -> None:
    length, num_heads = sum(pieces), num_shared * num_groups
    query = random_heads(num_heads, length, 1)
    key, value = random_heads(num_shared, length, 2), random_heads(num_shared, length, 3)
    whole = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    other = [random_heads(heads, 4, 9) for heads in (num_heads, num_shared, num_shared)]
    cache, start, outputs = KvSlots(), 0, []
    for size in pieces:
        rows = slice(start, start + size)
        heads = [
            torch.cat((neighbour, mine[:, :, rows]), 2)
            for neighbour, mine in zip(other, (query, key, value), strict=True)
        ]
        chunks = [chunk(1, 0, 4), chunk(0, start, size)]
        outputs.append(packed(cache, chunks, *heads)[0, 4:])  # [n, H, D]
        start += size
    torch.testing.assert_close(torch.cat(outputs).transpose(0, 1), whole[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_what_is_not_done_here_is_refused(name: str) -> None:
    heads = [random_heads(1, 2, seed) for seed in range(3)]
    with (
        step_context(StepContext(KvSlots(), (chunk(0, 0, 2),))),
        pytest.raises(UnsupportedAttention),
    ):
        attend_packed(Layer(), *heads, None, **{name: 8})


def test_a_context_belongs_to_its_thread_and_its_step() -> None:
    heads = [random_heads(1, 2, seed) for seed in range(3)]
    raised: list[type[Exception]] = []

    def attend_elsewhere() -> None:
        try:
            attend_packed(Layer(), *heads, None)
        except AttributeError as error:
            raised.append(type(error))

    with step_context(StepContext(KvSlots(), (chunk(0, 0, 2),))):
        thread = threading.Thread(target=attend_elsewhere)
        thread.start()
        thread.join()
    attend_elsewhere()
    assert raised == [AttributeError, AttributeError]
