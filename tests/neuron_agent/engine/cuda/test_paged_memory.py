"""What the estimate counts is at least what the cache is seen to take."""

from dataclasses import replace

import pytest
import torch

from neuron_agent.engine.cuda.graphs import graph_sizes
from neuron_agent.engine.cuda.paged_cache import PagedCache
from neuron_agent.engine.cuda.paged_memory import PagedShape, paged_extra_bytes

SHAPE = PagedShape(
    num_layers=2,
    kv_token_bytes=2 * 2 * 3 * 8 * 4,
    context_tokens=500,
    kv_tokens=1001,
    max_in_flight=32,
)


def test_what_a_cache_takes_beyond_its_tokens_is_counted() -> None:
    cache = PagedCache(torch.device("cpu"))
    key = torch.zeros(1, 3, 8)
    cache.reserve(SHAPE.kv_tokens)
    cache.reserve_slots(SHAPE.max_in_flight)
    for layer in range(SHAPE.num_layers):
        cache._new_layer(layer, 3, key[0], key[0])
    assert cache.token_bytes == SHAPE.kv_token_bytes
    extra = cache.allocated_bytes + cache.table.nbytes - SHAPE.kv_tokens * SHAPE.kv_token_bytes
    assert 0 < extra <= paged_extra_bytes(SHAPE)


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 200},
        {"kv_token_bytes": 10**6},
        {"context_tokens": 10**6},
        {"kv_tokens": 10**7},
        {"max_in_flight": 256},
    ],
)
def test_whatever_grows_takes_more(change: dict[str, int]) -> None:
    assert paged_extra_bytes(replace(SHAPE, **change)) > paged_extra_bytes(SHAPE)


def test_an_eight_billion_parameter_model_pays_less_than_two_gigabytes_for_all_its_graphs() -> None:
    shape = PagedShape(32, 2 * 8 * 128 * 2 * 32, 131072, 500_000, 256)
    assert paged_extra_bytes(shape) < 2 * 2**30
    assert len(graph_sizes(256)) == 35
