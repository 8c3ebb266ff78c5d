"""Replayed steps give what ordinary steps give. A recording that replays eagerly stands in."""

from collections.abc import Callable

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from neuron_agent.engine.cuda.graphs import (
    MOST_ROWS,
    Captured,
    GraphedForward,
    graph_sizes,
)
from neuron_agent.engine.cuda.paged_cache import PagedCache
from neuron_agent.engine.forwards.forward import Computed, pack
from neuron_agent.scheduling.batch import Batch, Chunk, Copy
from neuron_agent.scheduling.pool import KvLayout
from tests.neuron_agent.engine.cuda.eager_capture import EagerCapture
from tests.neuron_agent.engine.cuda.paged_stories import Story

VOCABULARY, HIDDEN, HEADS, SHARED, SIZE = 31, 12, 4, 2, 3
BLOCK_TOKENS = 4
CPU = torch.device("cpu")


class TinyForward:
    """Two layers of attention with positions, on random weights."""

    layout = KvLayout.BLOCKS
    is_slow_lane = False
    block_tokens = BLOCK_TOKENS

    def __init__(self) -> None:
        self.cache = PagedCache(CPU, block_tokens=BLOCK_TOKENS)
        generator = torch.Generator().manual_seed(1)
        self._tokens = torch.randn(VOCABULARY, HIDDEN, generator=generator)
        self._places = torch.randn(100, HIDDEN, generator=generator)
        width = (HEADS + 2 * SHARED) * SIZE
        self._layers = [torch.randn(HIDDEN, width, generator=generator) / 3 for _ in range(2)]
        self.num_computed = 0
        self.is_closed = False

    def tokens_to_hidden(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        hidden = self._tokens[ids] + self._places[positions]  # [T, hidden]
        for number, weight in enumerate(self._layers):
            heads = (hidden @ weight).view(len(ids), -1, SIZE)  # [T, H + 2 Hkv, D]
            query, key, value = heads.split([HEADS, SHARED, SHARED], dim=1)
            hidden = hidden + self.cache.attend(number, query, key, value, 0.5).flatten(1)
        return hidden[rows]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden @ self._tokens.T

    def compute(self, batch: Batch) -> Computed:
        self.num_computed += 1
        packed = pack(batch, CPU)
        self.cache.begin(batch)
        hidden = self.tokens_to_hidden(packed.ids, packed.positions, packed.rows)
        return Computed(self.head(hidden[: packed.num_sampled]), hidden[packed.num_sampled :])

    def reserve(self, kv_tokens: int) -> None:
        self.cache.reserve(kv_tokens)

    def warm_up(self, max_in_flight: int) -> None: ...

    def release(self, slot: int) -> None:
        self.cache.release(slot)

    def close(self) -> None:
        self.is_closed = True


def new_graphed(max_in_flight: int = 6) -> tuple[GraphedForward, TinyForward, EagerCapture]:
    inner, capture = TinyForward(), EagerCapture()
    forward = GraphedForward(inner, inner.cache, capture)
    forward.reserve(160)
    forward.warm_up(max_in_flight)
    return forward, inner, capture


@pytest.mark.parametrize("seed", range(6))
def test_replayed_steps_give_what_ordinary_steps_give(seed: int) -> None:
    graphed, inner, capture = new_graphed(max_in_flight=6)
    plain = TinyForward()
    plain.reserve(160)
    story = Story(seed, 6, BLOCK_TOKENS, VOCABULARY)
    num_ordinary = 0
    for _ in range(60):
        batch = story.next_batch()
        for slot in story.released:
            graphed.release(slot)
            plain.release(slot)
        story.released.clear()
        ours, theirs = graphed.compute(batch), plain.compute(batch)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-3, rtol=1e-3)
        assert ours.hidden.shape[0] == 0
        num_ordinary += any(len(chunk.token_ids) > 1 for chunk in batch.chunks)
    assert inner.num_computed == num_ordinary
    assert capture.num_replays == 60 - num_ordinary > 20


def single(slot: int, start: int, blocks: list[int], **changes: bool) -> Chunk:
    flags = {"is_decode": True, "is_sampled": True} | changes
    return Chunk(f"r{slot}", slot, start, (5,), 8, block_ids=blocks, **flags)  # type: ignore[arg-type]


def test_the_next_larger_graph_is_taken_and_more_rows_than_any_run_ordinarily() -> None:
    graphed, inner, capture = new_graphed(max_in_flight=3)
    assert graphed.graph_rows == (1, 2, 4)
    for num_rows, replays in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4)]:
        batch = Batch(tuple(single(slot, 0, [slot]) for slot in range(num_rows)))
        assert graphed.compute(batch).logits.shape == (num_rows, VOCABULARY)
        assert capture.num_replays == replays
    assert inner.num_computed == 1


def test_embeddings_and_unfinished_prompts_run_ordinarily() -> None:
    graphed, inner, capture = new_graphed()
    embedded = Chunk("r", 0, 0, (5,), 8, False, False, is_embedded=True, block_ids=[0])
    assert graphed.compute(Batch((embedded,))).hidden.shape == (1, HIDDEN)
    graphed.compute(Batch((single(1, 0, [1], is_sampled=False, is_decode=False),)))
    assert (inner.num_computed, capture.num_replays) == (2, 0)


def test_a_replay_does_not_change_what_an_earlier_one_gave() -> None:
    graphed, _, _ = new_graphed()
    first = graphed.compute(Batch((single(0, 0, [0]),))).logits
    kept = first.clone()
    graphed.compute(Batch((single(1, 0, [1]), single(0, 1, [0]))))
    graphed.compute(Batch((single(1, 1, [1]),)))
    torch.testing.assert_close(first, kept)


def test_copies_are_carried_out_before_a_replay() -> None:
    graphed, _, _ = new_graphed()
    for position in range(3):
        whole = graphed.compute(Batch((single(0, position, [6]),))).logits
    again = single(1, 2, [9])
    copied = graphed.compute(Batch((again,), copies=(Copy(6, 9, 2),))).logits
    torch.testing.assert_close(copied, whole)


def test_where_recording_fails_steps_run_ordinarily_and_it_is_said() -> None:
    inner = TinyForward()

    def fail(work: Callable[[], Tensor]) -> Captured:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = GraphedForward(inner, inner.cache, fail)
    with capture_logs() as logs:
        graphed.warm_up(4)
    assert [(log["event"], log["log_level"]) for log in logs] == [("no_graphs", "warning")]
    assert graphed.graph_rows == ()
    graphed.compute(Batch((single(0, 0, [0]),)))
    assert inner.num_computed == 1


def test_graphs_over_a_table_that_was_replaced_are_never_replayed() -> None:
    graphed, inner, capture = new_graphed(max_in_flight=2)
    with capture_logs() as logs:
        graphed.compute(Batch((single(50, 0, [0]),)))
        graphed.compute(Batch((single(1, 0, [1]),)))
    assert [log["event"] for log in logs] == ["graphs_dropped"]
    assert (inner.num_computed, capture.num_replays) == (2, 0)


def test_graphs_do_not_outlive_the_memory_they_were_recorded_over() -> None:
    graphed, inner, _ = new_graphed()
    graphed.reserve(80)
    assert graphed.graph_rows == ()
    graphed.warm_up(1)
    assert graphed.graph_rows == (1,)
    graphed.close()
    assert graphed.graph_rows == ()
    assert inner.is_closed


@pytest.mark.parametrize("max_in_flight", [1, 2, 3, 4, 7, 8, 9, 32, 100, 255, 256, 1000])
def test_every_number_of_sequences_in_flight_has_a_graph_not_much_too_large(
    max_in_flight: int,
) -> None:
    sizes = graph_sizes(max_in_flight)
    assert list(sizes) == sorted(set(sizes))
    for num_rows in range(1, min(max_in_flight, MOST_ROWS) + 1):
        size = min(size for size in sizes if size >= num_rows)
        assert size < 2 * num_rows or num_rows == 1
        assert size - num_rows < 8
    assert sizes[-1] <= MOST_ROWS
