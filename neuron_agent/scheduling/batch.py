"""What one step computes: pieces of sequences, decoding ones first.

Plain values that the engine turns into one forward pass. A batch knows no tensor and does not say
how the next token is chosen.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence. `start` is the position of the first of them."""

    request_id: str
    slot: int
    start: int
    token_ids: tuple[int, ...]
    reserved_tokens: int
    """How long the sequence may become before it must ask for more room."""
    is_decode: bool
    is_sampled: bool
    """The chunk reaches the sequence's end: the logits of its last token give the next token."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    chunks: tuple[Chunk, ...]

    @property
    def num_prefill_tokens(self) -> int:
        return sum(len(chunk.token_ids) for chunk in self.chunks if not chunk.is_decode)

    @property
    def sampled(self) -> tuple[Chunk, ...]:
        """The chunks that yield a token, in the order of their logit rows."""
        return tuple(chunk for chunk in self.chunks if chunk.is_sampled)
