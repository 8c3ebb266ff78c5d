"""Decode steps recorded once as CUDA graphs and replayed: no Python and no launch per layer.

A graph is recorded for a number of rows and always reads and writes the same memory. A step that
decodes fewer rows is filled up to the next recorded number; all other steps run as they are. What
recording means is handed in, so that the handling of buffers is the same without a GPU. It knows
no kernel and no weight.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import structlog
import torch
from torch import Tensor

from neuron_agent.engine.cuda.paged_cache import DecodeBuffers, PagedCache
from neuron_agent.engine.forwards.forward import Computed, Forward
from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.pool import KvLayout

log = structlog.get_logger(__name__)

MOST_ROWS = 256
"""Above this a step has so much to compute that launching it no longer counts."""


@runtime_checkable
class Capturable(Forward, Protocol):
    """A forward with a part that can be recorded: tensors in, tensors out, nothing decided."""

    cache: object

    def tokens_to_hidden(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """ids [T], positions [T], rows [R] -> the rows' last hidden states [R, H].

        Between a cache's beginning of a step and its end.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [R, H] -> logits [R, V]."""


@dataclass(frozen=True, slots=True)
class Captured:
    replay: Callable[[], None]
    output: Tensor
    """The same memory after every replay."""


class Capture(Protocol):
    def __call__(self, work: Callable[[], Tensor]) -> Captured:
        """Record what `work` does on the device. Raises RuntimeError if it cannot be recorded."""


class CudaCapture:
    """Records on a stream of its own. All graphs share memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> Captured:
        ordinary = torch.cuda.current_stream()
        self._stream.wait_stream(ordinary)
        with torch.cuda.stream(self._stream):
            work()  # what kernels and libraries do only the first time must not be recorded
        ordinary.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = work()
        return Captured(graph.replay, output)


@dataclass(frozen=True, slots=True)
class _Graph:
    buffers: DecodeBuffers
    captured: Captured  # gives [n, H]


class GraphedForward:
    """`inner`, with its decode steps replayed. Results belong to the caller, as `inner`'s do."""

    is_slow_lane = False

    def __init__(self, inner: Capturable, cache: PagedCache, capture: Capture) -> None:
        self._inner = inner
        self._cache = cache
        self._capture = capture
        self._graphs: dict[int, _Graph] = {}  # by number of rows, ascending
        self._recorded_table: Tensor | None = None

    @property
    def layout(self) -> KvLayout:
        return self._inner.layout

    @property
    def block_tokens(self) -> int:
        return self._inner.block_tokens

    @property
    def graph_rows(self) -> tuple[int, ...]:
        """For how many rows there is a graph each."""
        return tuple(self._graphs)

    def compute(self, batch: Batch) -> Computed:
        graph = self._graph_for(batch)
        if graph is None:
            return self._inner.compute(batch)
        self._cache.fill(graph.buffers, batch)
        graph.captured.replay()
        hidden = graph.captured.output[: len(batch.chunks)]  # [R, H]
        # The head is one launch, and outside the graph its large result is memory like any other.
        return Computed(self._inner.head(hidden), hidden[:0])

    def _graph_for(self, batch: Batch) -> _Graph | None:
        """Return the smallest graph that can compute a batch, if one can."""
        if not self._graphs or not all(
            chunk.is_sampled and len(chunk.token_ids) == 1 for chunk in batch.chunks
        ):
            return None
        self._cache.fit_slots(batch)
        if self._cache.table is not self._recorded_table:
            # Graphs read the table where it was when they were recorded.
            self._graphs.clear()
            log.warning("graphs_dropped", reason="the cache was given more slots")
            return None
        sizes = tuple(self._graphs)
        place = bisect_left(sizes, len(batch.chunks))
        return self._graphs[sizes[place]] if place < len(sizes) else None

    def reserve(self, kv_tokens: int) -> None:
        self._graphs.clear()
        self._inner.reserve(kv_tokens)

    @torch.no_grad()
    def warm_up(self, max_in_flight: int) -> None:
        """Record the graphs, the largest first so that the others fit into its memory."""
        self._inner.warm_up(max_in_flight)
        self._graphs.clear()
        self._cache.reserve_slots(max_in_flight)
        self._recorded_table = self._cache.table
        recorded: dict[int, _Graph] = {}
        try:
            for num_rows in reversed(graph_sizes(max_in_flight)):
                recorded[num_rows] = self._record(num_rows)
        except RuntimeError as error:
            # A device that is broken, and not only unable to record, shows in the next step.
            log.warning("no_graphs", error=str(error), consequence="decoding is slower")
            return
        self._graphs = dict(sorted(recorded.items()))

    def _record(self, num_rows: int) -> _Graph:
        buffers = DecodeBuffers(num_rows, self._cache.device)
        rows = torch.arange(num_rows, device=self._cache.device)

        def work() -> Tensor:
            self._cache.begin_filled(buffers)
            positions = buffers.lengths.long() - 1  # each row is its sequence's last token
            return self._inner.tokens_to_hidden(buffers.ids.long(), positions, rows)

        return _Graph(buffers, self._capture(work))

    def release(self, slot: int) -> None:
        self._inner.release(slot)

    def close(self) -> None:
        self._graphs.clear()
        self._recorded_table = None
        self._inner.close()


def graph_sizes(max_in_flight: int) -> tuple[int, ...]:
    """Return for how many rows graphs are recorded: 1, 2, 4, then every multiple of 8.

    Up to the first that holds all sequences in flight, but not above MOST_ROWS.
    """
    most = min(max_in_flight, MOST_ROWS)
    sizes = [1, 2, 4, *range(8, MOST_ROWS + 1, 8)]
    return tuple(sizes[: bisect_left(sizes, most) + 1])
