"""A model that is a function: the next token depends on the whole sequence, and on nothing else.

It keeps what it was given per slot, as a cache does, and complains when a chunk does not continue
what its slot holds. So a scheduler that mixes up slots or positions cannot pass unnoticed.
"""

from neuron_agent.scheduling.batch import Batch

VOCABULARY_SIZE = 50
STOP_ID = 7


def next_token(ids: tuple[int, ...]) -> int:
    state = 17
    for token in ids:
        state = (state * 31 + token + 1) % 10_007
    return state % VOCABULARY_SIZE


def generate_alone(prompt: tuple[int, ...], max_tokens: int, stop_ids: frozenset[int]) -> list[int]:
    """What a request must give, whatever else runs: its tokens, a stop token included."""
    ids = list(prompt)
    for _ in range(max_tokens):
        ids.append(next_token(tuple(ids)))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


class ToyModel:
    def __init__(self) -> None:
        self.slots: dict[int, tuple[str, tuple[int, ...]]] = {}

    def run(self, batch: Batch) -> dict[str, int]:
        """Compute a batch; return the token of each sampled chunk by request."""
        tokens = {}
        for chunk in batch.chunks:
            owner, held = self.slots.get(chunk.slot, (chunk.request_id, ()))
            if chunk.start == 0:
                owner, held = chunk.request_id, ()
            assert owner == chunk.request_id, "a slot of another request"
            assert len(held) == chunk.start, "a chunk that does not continue its slot"
            assert chunk.end <= chunk.reserved_tokens, "more tokens than were reserved"
            self.slots[chunk.slot] = owner, held + chunk.token_ids
            if chunk.is_sampled:
                tokens[chunk.request_id] = next_token(held + chunk.token_ids)
        return tokens
