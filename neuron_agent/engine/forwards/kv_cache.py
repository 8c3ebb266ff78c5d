"""The contract of a KV cache: what a forward of ours asks of it, layer by layer.

`slot_cache` keeps contiguous slots (CPU), `paged_cache` blocks (CUDA). A cache stores keys and
values and attends over them; it knows no request, no weight and nothing of sampling.
"""

from typing import Protocol

from torch import Tensor

from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.pool import KvLayout


class KvCache(Protocol):
    @property
    def layout(self) -> KvLayout: ...

    @property
    def block_tokens(self) -> int:
        """Tokens of a block; 1 where the cache is not paged."""

    def reserve(self, num_tokens: int) -> None:
        """Take memory for so many tokens at once; nothing where memory follows use."""

    def begin(self, batch: Batch) -> None:
        """Get ready for a step: carry out its copies, and compute once what every layer needs."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """Store a layer's new keys and values, then attend causally over each sequence's own.

        query [T, H, D], key and value [T, Hkv, D], rows in the order of the batch's chunks
        -> [T, H, D]. With `window`, a token sees itself and the `window - 1` tokens before it.
        Writing a position again replaces it: a step that failed half-way can be repeated.
        """

    def release(self, slot: int) -> None:
        """Forget a sequence's contents, where they are kept per sequence."""

    def clear(self) -> None:
        """Let go of all memory."""

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes over all layers, once a token has gone through them."""
