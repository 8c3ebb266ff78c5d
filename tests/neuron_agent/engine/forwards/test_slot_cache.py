from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuron_agent.engine.forwards import slot_cache
from neuron_agent.engine.forwards.slot_cache import FIRST_TOKENS, SlotCache
from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from tests.neuron_agent.engine.cpu.conditions import needs_kernels

HEAD_SIZE = 16
SCALE = HEAD_SIZE**-0.5


@pytest.fixture(
    autouse=True, scope="module", params=[pytest.param("kernels", marks=needs_kernels), "torch"]
)
def _attends_with(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of it holds with compiled kernels and without."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "torch":
            patched.setattr(slot_cache, "can_attend", lambda *_tensors: False)
        yield


def chunk(slot: int, start: int, num_tokens: int, reserved: int = 1000) -> Chunk:
    ids = (0,) * num_tokens
    return Chunk(str(slot), slot, start, ids, reserved, is_decode=num_tokens == 1, is_sampled=True)


class Sequence:
    """Random queries, keys and values of one layer, for a whole sequence."""

    def __init__(self, length: int, num_shared: int, num_groups: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        heads = num_shared * num_groups
        self.query = torch.randn(length, heads, HEAD_SIZE, generator=generator)
        self.key = torch.randn(length, num_shared, HEAD_SIZE, generator=generator)
        self.value = torch.randn(length, num_shared, HEAD_SIZE, generator=generator)

    def rows(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.query[start:end], self.key[start:end], self.value[start:end]

    def attended(self, window: int | None = None) -> Tensor:
        """[T, H, D] of the whole at once, by the book."""
        length = len(self.query)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if window is not None:
            seen = seen.triu(1 - window)
        heads = [tensor.transpose(0, 1) for tensor in (self.query, self.key, self.value)]
        out = F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=SCALE, enable_gqa=True)
        return out.transpose(0, 1)


def attend(
    cache: SlotCache,
    *pieces: tuple[Chunk, tuple[Tensor, Tensor, Tensor]],
    copies: tuple[Copy, ...] = (),
    window: int | None = None,
) -> list[Tensor]:
    """One step of one layer; return what came out per piece."""
    cache.begin(Batch(tuple(chunk for chunk, _ in pieces), copies))
    query, key, value = (
        torch.cat(parts) for parts in zip(*(rows for _, rows in pieces), strict=True)
    )
    out = cache.attend(0, query, key, value, SCALE, window)
    return list(out.split([len(chunk.token_ids) for chunk, _ in pieces]))


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@given(
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    num_shared=st.sampled_from([1, 2]),
    num_groups=st.sampled_from([1, 3]),
    window=st.sampled_from([None, 1, 2, 5, 100]),
    num_before=st.integers(1, 3),
)
@settings(deadline=None)
def test_pieces_attend_as_the_whole_does_beside_any_neighbour(
    pieces: list[int], num_shared: int, num_groups: int, window: int | None, num_before: int
) -> None:
    sequence = Sequence(sum(pieces), num_shared, num_groups, seed=1)
    neighbour = Sequence(num_before, num_shared, num_groups, seed=9)
    cache, start, outputs = SlotCache(), 0, []
    for size in pieces:
        _, mine, _ = attend(
            cache,
            (chunk(1, 0, num_before), neighbour.rows(0, num_before)),
            (chunk(0, start, size), sequence.rows(start, start + size)),
            (chunk(2, 0, num_before), neighbour.rows(0, num_before)),
            window=window,
        )
        outputs.append(mine)
        start += size
    assert_same(torch.cat(outputs), sequence.attended(window))


@given(shared=st.integers(1, 80), rest=st.integers(1, 80), kept=st.sampled_from([None, 1, 90, 200]))
@settings(deadline=None, max_examples=25)
def test_a_copied_prefix_is_as_good_as_a_computed_one(
    shared: int, rest: int, kept: int | None
) -> None:
    """Whatever the target held before, and although the source goes on meanwhile."""
    sequence = Sequence(shared + rest, 2, 2, seed=3)
    other = Sequence(200, 2, 2, seed=4)
    cache = SlotCache()
    attend(cache, (chunk(5, 0, shared), sequence.rows(0, shared)))
    if kept is not None:
        attend(cache, (chunk(6, 0, kept), other.rows(0, kept)))
    _, mine = attend(
        cache,
        (chunk(5, shared, 1), other.rows(0, 1)),
        (chunk(6, shared, rest), sequence.rows(shared, shared + rest)),
        copies=(Copy(5, 6, shared),),
    )
    assert_same(mine, sequence.attended()[shared:])


def test_copies_happen_in_their_order() -> None:
    sequence, other = Sequence(4, 1, 1, seed=1), Sequence(3, 1, 1, seed=2)
    cache = SlotCache()
    attend(cache, (chunk(0, 0, 3), sequence.rows(0, 3)), (chunk(1, 0, 3), other.rows(0, 3)))
    copies = (Copy(0, 1, 3), Copy(1, 2, 3), Copy(2, 2, 3))
    mine = attend(cache, (chunk(2, 3, 1), sequence.rows(3, 4)), copies=copies)[0]
    assert_same(mine, sequence.attended()[3:])


def test_sequences_that_decode_together_attend_as_each_does_alone() -> None:
    """One ends and is another's beginning, one joins late, one is cancelled between two steps."""
    stories = [Sequence(length, 2, 3, seed=length) for length in (150, 90, 66)]
    cache = SlotCache()
    with torch.inference_mode():
        for slot, one in enumerate(stories[:2]):
            attend(cache, (chunk(slot, 0, 60), one.rows(0, 60)))
        for place in range(60, 66):
            pieces = [
                (chunk(slot, place, 1), one.rows(place, place + 1))
                for slot, one in enumerate(stories[:2])
            ]
            for one, mine in zip(stories, attend(cache, *pieces), strict=False):
                assert_same(mine, one.attended()[place : place + 1])
        # Slot 1 ends here; slot 2 begins with what it has left, beside slot 0.
        both = [
            (chunk(0, 66, 1), stories[0].rows(66, 67)),
            (chunk(2, 64, 2), stories[2].rows(64, 66)),
        ]
        copied = Sequence(66, 2, 3, seed=90)
        copied.key[:64], copied.value[:64] = stories[1].key[:64], stories[1].value[:64]
        copied.key[64:], copied.value[64:] = stories[2].key[64:], stories[2].value[64:]
        copied.query[64:] = stories[2].query[64:]
        first, second = attend(cache, *both, copies=(Copy(1, 2, 64),))
        assert_same(first, stories[0].attended()[66:67])
        assert_same(second, copied.attended()[64:])
    cache.release(1)
    cache.release(2)
    assert cache.num_slots == 1
    with torch.inference_mode():
        last = attend(cache, (chunk(0, 67, 1), stories[0].rows(67, 68)))[0]
        assert_same(last, stories[0].attended()[67:68])


def test_a_copy_of_a_sequence_that_decodes_is_of_its_beginning() -> None:
    both = [Sequence(100, 2, 1, seed) for seed in (1, 2)]
    cache = SlotCache()
    for slot, one in enumerate(both):
        attend(cache, (chunk(slot, 0, 70), one.rows(0, 70)))
    decoding = [(chunk(slot, 70, 1), one.rows(70, 71)) for slot, one in enumerate(both)]
    attend(cache, *decoding)
    goes_on = [(chunk(slot, 71, 1), one.rows(71, 72)) for slot, one in enumerate(both)]
    copier = (chunk(5, 65, 30), both[1].rows(65, 95))
    *_, mine = attend(cache, *goes_on, copier, copies=(Copy(1, 5, 65),))
    assert_same(mine, both[1].attended()[65:95])


def test_writing_a_chunk_again_replaces_it() -> None:
    sequence, wrong = Sequence(6, 2, 1, seed=1), Sequence(2, 2, 1, seed=2)
    cache = SlotCache()
    attend(cache, (chunk(0, 0, 4), sequence.rows(0, 4)))
    attend(cache, (chunk(0, 4, 2), wrong.rows(0, 2)))
    mine = attend(cache, (chunk(0, 4, 2), sequence.rows(4, 6)))[0]
    assert_same(mine, sequence.attended()[4:])


def test_a_slot_never_takes_more_than_is_reserved() -> None:
    length = FIRST_TOKENS + 1
    cache = SlotCache()
    attend(cache, (chunk(0, 0, length, reserved=70), Sequence(length, 2, 1, 1).rows(0, length)))
    assert cache.allocated_bytes == 70 * cache.token_bytes


@pytest.mark.parametrize("num_grown", [0, 1, 2, 3])
def test_memory_that_ran_out_in_mid_growth_loses_no_token(
    num_grown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step may be given up for another request's sake, and this sequence go on: with what
    fits its old room first, while some layers have a larger one already."""
    length = FIRST_TOKENS + 2
    layers = [Sequence(length, 2, 1, seed) for seed in (1, 2)]
    cache = SlotCache()

    def attend_all(start: int, end: int) -> None:
        cache.begin(Batch((chunk(0, start, end - start),)))
        for layer, sequence in enumerate(layers):
            mine = cache.attend(layer, *sequence.rows(start, end), SCALE)
            assert_same(mine, sequence.attended()[start:end])

    attend_all(0, FIRST_TOKENS - 2)
    grown, real = [], slot_cache._grown

    def fail(held: Tensor, *numbers: int) -> Tensor:
        if len(grown) == num_grown:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        grown.append(held)
        return real(held, *numbers)

    with monkeypatch.context() as patched:
        patched.setattr(slot_cache, "_grown", fail)
        with pytest.raises(RuntimeError, match="memory"):
            cache.begin(Batch((chunk(0, FIRST_TOKENS - 2, 4),)))
    attend_all(FIRST_TOKENS - 2, FIRST_TOKENS)
    attend_all(FIRST_TOKENS, length)


def test_slots_and_layers_do_not_mix_and_a_released_slot_is_gone() -> None:
    cache = SlotCache()
    both = [Sequence(3, 2, 1, seed) for seed in (1, 2)]
    cache.begin(Batch((chunk(0, 0, 3),)))
    for layer, sequence in enumerate(both):
        assert_same(cache.attend(layer, *sequence.rows(0, 3), SCALE), sequence.attended())
    assert cache.token_bytes == 2 * 2 * 2 * HEAD_SIZE * 4
    attend(cache, (chunk(1, 0, 3), both[1].rows(0, 3)))
    cache.release(0)
    assert cache.num_slots == 1
    cache.release(1)
    assert cache.allocated_bytes == 0
    assert cache.token_bytes > 0, "a price does not depend on what is there"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_keeps_the_dtype(dtype: torch.dtype) -> None:
    rows = [tensor.to(dtype) for tensor in Sequence(5, 2, 2, seed=1).rows(0, 5)]
    cache = SlotCache()
    cache.begin(Batch((chunk(0, 0, 5),)))
    assert cache.attend(0, *rows, SCALE).dtype == dtype


def test_what_all_scores_have_in_common_takes_nothing_from_their_differences() -> None:
    """As with keys that have a large bias: scores rounded to bfloat16 would say little."""
    length = 100
    cache, sequences = SlotCache(), []
    for slot in (0, 1):
        sequence = Sequence(length, 2, 2, seed=slot)
        sequence.query[..., 0], sequence.key[..., 0] = 30.0, 30.0
        sequences.append(sequence)
        rows = tuple(tensor.bfloat16() for tensor in sequence.rows(0, length - 1))
        (out,) = attend(cache, (chunk(slot, 0, length - 1), rows))
        assert (out[1:].float() - sequence.attended()[1:-1]).abs().max() < 0.05
    pieces = [
        (chunk(slot, length - 1, 1), tuple(t.bfloat16() for t in each.rows(length - 1, length)))
        for slot, each in enumerate(sequences)
    ]
    for out, each in zip(attend(cache, *pieces), sequences, strict=True):
        assert (out[0].float() - each.attended()[-1]).abs().max() < 0.02
