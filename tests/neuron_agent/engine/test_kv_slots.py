import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.engine.kv_slots import FIRST_TOKENS, KvSlots
from neuron_agent.scheduling.batch import Chunk

HEADS, HEAD_SIZE = 2, 3


def chunk(start: int, num_tokens: int, slot: int = 0, reserved: int = 1000) -> Chunk:
    return Chunk("r", slot, start, (0,) * num_tokens, reserved, is_decode=False, is_sampled=True)


def rows(num_tokens: int, first: float) -> torch.Tensor:
    """[Hkv, n, D], each token filled with a number of its own."""
    numbers = torch.arange(num_tokens, dtype=torch.float32) + first
    return numbers.view(1, -1, 1).expand(HEADS, num_tokens, HEAD_SIZE).clone()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_a_sequence_reads_back_what_was_written_however_it_was_cut(pieces: list[int]) -> None:
    cache, start = KvSlots(), 0
    for length in pieces:
        keys, values = cache.append(
            chunk(start, length), 0, rows(length, start), -rows(length, start)
        )
        start += length
    assert torch.equal(keys, rows(start, 0))
    assert torch.equal(values, -rows(start, 0))


def test_a_slot_never_takes_more_than_is_reserved() -> None:
    cache = KvSlots()
    length = FIRST_TOKENS + 1
    cache.append(chunk(0, length, reserved=70), 0, rows(length, 0), rows(length, 0))
    assert cache.allocated_bytes == 2 * 70 * HEADS * HEAD_SIZE * 4


def test_writing_a_chunk_again_replaces_it() -> None:
    cache = KvSlots()
    cache.append(chunk(0, 4), 0, rows(4, 0), rows(4, 0))
    cache.append(chunk(4, 2), 0, rows(2, 50), rows(2, 50))
    keys, _ = cache.append(chunk(4, 2), 0, rows(2, 4), rows(2, 4))
    assert torch.equal(keys, rows(6, 0))


def test_slots_and_layers_do_not_mix_and_a_released_slot_is_gone() -> None:
    cache = KvSlots()
    for slot in (0, 1):
        for layer in (0, 1):
            new = rows(3, 100 * slot + 10 * layer)
            keys, _ = cache.append(chunk(0, 3, slot), layer, new, new)
            assert torch.equal(keys, new)
    assert cache.token_bytes(slot=0) == 2 * 2 * HEADS * HEAD_SIZE * 4
    cache.release(0)
    assert cache.num_slots == 1
    cache.release(1)
    assert cache.allocated_bytes == 0
