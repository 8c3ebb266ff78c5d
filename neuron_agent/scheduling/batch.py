"""What one step computes: pieces of sequences, decoding ones first.

Plain values that the engine turns into one forward pass. A batch knows no tensor and does not say
how the next token is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Copy:
    """Cache contents to copy before a step computes: the first tokens of a slot, or of a block."""

    source: int
    target: int
    num_tokens: int


@dataclass(slots=True)
class Chunk:
    """Consecutive tokens of one sequence. `start` is the position of the first of them.

    Never changed once made. Not frozen all the same: a step makes one for every sequence, and
    freezing would make that five times as slow.
    """

    request_id: str
    slot: int
    start: int
    token_ids: tuple[int, ...]
    reserved_tokens: int
    """How long the sequence may become before it must ask for more room."""
    is_decode: bool
    is_sampled: bool
    """The chunk reaches the sequence's end: the logits of its last token give the next token."""
    is_embedded: bool = False
    """The chunk reaches the end of a prompt whose embedding is asked for; it is not sampled."""
    block_ids: Sequence[int] = ()
    """The sequence's blocks in order, where the cache is paged; else empty."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...] = ()
    """To be carried out in this order, before anything of the batch is computed."""

    @property
    def num_prefill_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks if not chunk.is_decode)

    @property
    def sampled(self) -> tuple[Chunk, ...]:
        """The chunks that yield a token, in the order of their logit rows."""
        return tuple(chunk for chunk in self.chunks if chunk.is_sampled)

    @property
    def embedded(self) -> tuple[Chunk, ...]:
        """The chunks that yield an embedding, in the order of their rows."""
        return tuple(chunk for chunk in self.chunks if chunk.is_embedded)
