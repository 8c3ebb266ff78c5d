"""Is a forward of ours right for this model? Compared, at every load, with transformers' own.

Not every architecture says what it mixes between tokens. A few tokens of two sequences, packed
and continued from the cache, must give what each gives alone and without a cache.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neuron_agent.engine.forwards.forward import Forward
from neuron_agent.scheduling.batch import Batch, Chunk

NUM_TOKENS = (7, 5)  # of the two sequences
RESERVED_TOKENS = 8


def probe_sequences(vocabulary_size: int) -> list[tuple[int, ...]]:
    """Return the ids of the two sequences, spread over the vocabulary."""
    return [
        tuple((13 + 7919 * (place + 31 * number)) % vocabulary_size for place in range(length))
        for number, length in enumerate(NUM_TOKENS)
    ]


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, sequences: list[tuple[int, ...]]) -> Tensor:
    """Compute the last logits [S, V] of each sequence alone, with the model as it was loaded."""
    rows = [
        model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, -1]
        for ids in sequences
    ]
    return torch.stack(rows)


@torch.inference_mode()
def forward_logits(forward: Forward, sequences: list[tuple[int, ...]]) -> Tensor:
    """Compute the same [S, V] as a step would: all but the last token, then the last from cache.

    The slots stay as they are; releasing them is up to the caller.
    """
    beginnings = [(slot, ids[:-1], 0) for slot, ids in enumerate(sequences)]
    forward.compute(_batch(beginnings, forward.block_tokens))
    ends = [(slot, ids[-1:], len(ids) - 1) for slot, ids in enumerate(sequences)]
    return forward.compute(_batch(ends, forward.block_tokens)).logits


def agree(ours: Tensor, reference: Tensor, *, is_quantised: bool = False) -> bool:
    """Whether two sets of logits [S, V] are the same but for rounding in the model's dtype."""
    if is_quantised:
        least_cosine, most_stretch = 0.9, 0.1  # inputs are rounded to eight bits, too
    elif reference.dtype == torch.float32:
        least_cosine, most_stretch = 0.9999, 0.001
    else:
        least_cosine, most_stretch = 0.95, 0.1
    ours, reference = ours.float(), reference.float()
    cosines = torch.cosine_similarity(ours, reference, dim=-1)  # [S]
    # Logits that are scaled have the same direction and the same best token.
    stretch = (ours.norm(dim=-1) / reference.norm(dim=-1) - 1).abs()  # [S]
    return bool(((cosines >= least_cosine) & (stretch <= most_stretch)).all())


def _batch(pieces: list[tuple[int, tuple[int, ...], int]], block_tokens: int) -> Batch:
    num_blocks = -(-RESERVED_TOKENS // block_tokens)
    return Batch(
        tuple(
            Chunk(
                request_id=str(slot),
                slot=slot,
                start=start,
                token_ids=ids,
                reserved_tokens=RESERVED_TOKENS,
                is_decode=len(ids) == 1,
                is_sampled=True,
                block_ids=range(slot * num_blocks, (slot + 1) * num_blocks),
            )
            for slot, ids, start in pieces
        )
    )
