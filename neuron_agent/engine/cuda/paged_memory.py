"""What the CUDA path takes beside weights, cache and an ordinary step's tensors. Numbers only."""

from dataclasses import dataclass

from neuron_agent.engine.cuda.graphs import graph_sizes
from neuron_agent.engine.cuda.paged_cache import BLOCK_TOKENS, GATHER_TOKENS

GRAPH_LAYER_BYTES = 256 * 1024
"""What the driver keeps for one layer of one graph. An estimate to count on before a load; what a
load really took is measured after it."""

DECODE_PARTS_BYTES = 16 * 1024 * 1024
"""The parts that decode attention is divided into and put together from: two programs a processor
leave some rows of numbers each."""

PLACE_BYTES = 64
"""For each gathered token: its block, its place and the sums on the way there."""


@dataclass(frozen=True, slots=True)
class PagedShape:
    num_layers: int
    kv_token_bytes: int
    """Of all layers together."""
    context_tokens: int
    kv_tokens: int
    """The most that the cache will hold."""
    max_in_flight: int


def paged_extra_bytes(shape: PagedShape) -> int:
    """Estimate it, for a load's sums.

    1. A layer's keys and values of a group of prompts, gathered.
    2. The block for fillers, and the last one's unused end.
    3. The table.
    4. Graphs, and decode attention's parts.
    """
    gathered_tokens = max(GATHER_TOKENS, shape.context_tokens)
    layer_token_bytes = -(-shape.kv_token_bytes // max(1, shape.num_layers))
    gathered = gathered_tokens * (layer_token_bytes + PLACE_BYTES)
    spare_blocks = 2 * BLOCK_TOKENS * shape.kv_token_bytes
    table = shape.max_in_flight * -(-shape.kv_tokens // BLOCK_TOKENS) * 4
    graphs = len(graph_sizes(shape.max_in_flight)) * shape.num_layers * GRAPH_LAYER_BYTES
    return gathered + spare_blocks + table + graphs + DECODE_PARTS_BYTES
