"""The KV cache of GPUs: keys and values in blocks, found through a table on the device.

Storage and bookkeeping of a step; how single tokens and prompts attend is chosen per layer by
whoever builds the cache. It runs on any device. It knows neither requests nor weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from neuron_agent.engine.cuda.paged_attention import (
    AttentionKernels,
    DecodeStep,
    Pages,
    PrefillStep,
    plain_decode,
    plain_prefill,
)
from neuron_agent.engine.cuda.paged_plan import (
    SCRATCH_BLOCKS,
    PrefillGroup,
    StepPlan,
    TableBook,
)
from neuron_agent.scheduling.batch import Batch, Copy
from neuron_agent.scheduling.pool import KvLayout

BLOCK_TOKENS = 64
FIRST_TOKENS = 1024
"""Room before the cache's size is known: for trying out whether a forward is right."""

FIRST_SLOTS = 8
GATHER_TOKENS = 16384
"""Prompts that have something in the cache are attended in groups of so many keys: contiguous
copies of what they see are made for one layer and one group at a time."""

KernelChoice = Callable[[Pages, int], AttentionKernels]
"""Given a layer's pages and how many query heads it has, says how to attend."""


@dataclass(frozen=True, slots=True)
class _Layer:
    pages: Pages
    kernels: AttentionKernels


@dataclass(frozen=True, slots=True)
class _Step:
    """A step on the device."""

    places: Tensor  # [T] int64: where each token's keys and values go
    decode: DecodeStep | None
    prefills: tuple[tuple[slice, PrefillStep], ...]
    """Each with the step's rows that it attends for."""


class DecodeBuffers:
    """What a captured decode step reads: always the same memory, filled anew before each replay.

    Rows that are not needed hold a filler: token 0 at position 0 of the scratch block.
    """

    @torch.inference_mode(False)  # what is written again and again must be an ordinary tensor
    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.num_rows = num_rows
        self.numbers = torch.zeros(4 * num_rows, dtype=torch.int32, device=device)
        parts = self.numbers.view(4, num_rows)
        self.ids, self.places, self.slots, self.lengths = parts.unbind()  # each [n]
        self.lengths.fill_(1)


def plain_kernels(_pages: Pages, _num_heads: int) -> AttentionKernels:
    return AttentionKernels(plain_decode, plain_prefill)


class PagedCache:
    """Blocks of `block_tokens` tokens; a batch says which ones belong to each sequence."""

    layout = KvLayout.BLOCKS

    def __init__(
        self,
        device: torch.device,
        choose_kernels: KernelChoice = plain_kernels,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        self.block_tokens = block_tokens
        self.device = device
        self._choose_kernels = choose_kernels
        self._layers: dict[int, _Layer] = {}
        self._token_bytes: dict[int, int] = {}  # by layer
        self._step: _Step | None = None
        self._set_up_table(FIRST_SLOTS, -(-FIRST_TOKENS // block_tokens))

    # --- size ----------------------------------------------------------------------------------

    def reserve(self, num_tokens: int) -> None:
        """Take memory for so many tokens, in all layers known by now. Contents are lost."""
        like = {
            index: (*_one_token(layer.pages), layer.kernels)
            for index, layer in self._layers.items()
        }
        self.clear()
        self._set_up_table(self._book.num_slots, -(-num_tokens // self.block_tokens))
        for index, (key, value, kernels) in like.items():
            self._layers[index] = _Layer(self._new_pages(key, value), kernels)

    def reserve_slots(self, num_slots: int) -> None:
        """Make the table long enough for slots below `num_slots`."""
        if num_slots > self._book.num_slots:
            self._set_up_table(num_slots, self._book.num_blocks)

    @property
    def table(self) -> Tensor:
        """[R, W] int32: each slot's blocks. Another tensor once there are more slots or blocks."""
        return self._table

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes over all layers, as measured on those that were attended."""
        return sum(self._token_bytes.values())

    @property
    def allocated_bytes(self) -> int:
        pages = [layer.pages for layer in self._layers.values()]
        return sum(page.keys.nbytes + page.values.nbytes for page in pages)

    @torch.inference_mode(False)
    def _set_up_table(self, num_slots: int, num_blocks: int) -> None:
        book = TableBook(num_slots, num_blocks, self.block_tokens)
        table = torch.zeros(num_slots, book.width, dtype=torch.int32, device=self.device)
        # Both or, if memory runs out, neither: a book larger than its table writes beyond it.
        self._book, self._table = book, table

    def _new_layer(self, index: int, num_heads: int, key: Tensor, value: Tensor) -> _Layer:
        """Give a layer memory for keys and values like these [Hkv, D], and its kernels."""
        pages = self._new_pages(key, value)
        layer = self._layers[index] = _Layer(pages, self._choose_kernels(pages, num_heads))
        self._token_bytes[index] = (key.numel() + value.numel()) * key.itemsize
        return layer

    @torch.inference_mode(False)
    def _new_pages(self, key: Tensor, value: Tensor) -> Pages:
        num_blocks = self._book.num_blocks + SCRATCH_BLOCKS
        # Zeros and not just any bytes: an attention may multiply what it masks by 0.
        return Pages(
            key.new_zeros(num_blocks, self.block_tokens, *key.shape),
            value.new_zeros(num_blocks, self.block_tokens, *value.shape),
        )

    # --- the step ------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Carry out the batch's copies and send where its tokens lie: one transfer.

        Raises CacheOverrun, before anything is computed, if blocks are named that are not there.
        """
        self.fit_slots(batch)
        self._carry_out(batch.copies)
        with self._forgetting_on_failure(batch):
            plan = self._book.plan(batch, GATHER_TOKENS)
            groups = [numbers for group in plan.groups for numbers in _numbers_of(group)]
            sent = self._send([plan.places, plan.slots, plan.lengths, *groups], plan)
        places, slots, lengths, *groups_sent = sent
        decode = DecodeStep(self._table, slots, lengths) if plan.num_decode else None
        prefills = zip(plan.groups, _by_three(groups_sent), strict=True)
        self._step = _Step(
            places.long(), decode, tuple(self._prefill(group, *three) for group, three in prefills)
        )

    def fit_slots(self, batch: Batch) -> None:
        """Make the table long enough for the batch's slots."""
        needed = 1 + max(chunk.slot for chunk in batch.chunks)
        if needed > self._book.num_slots:
            self.reserve_slots(max(needed, 2 * self._book.num_slots))

    def fill(self, buffers: DecodeBuffers, batch: Batch) -> None:
        """What `begin` does, for single tokens alone and into what a captured step reads."""
        self._carry_out(batch.copies)
        with self._forgetting_on_failure(batch):
            plan = self._book.plan(batch, GATHER_TOKENS)
            num_fillers = buffers.num_rows - len(batch.chunks)
            ids = [chunk.token_ids[0] for chunk in batch.chunks]
            rows = (
                (ids, 0),
                (plan.places, 0),  # in the scratch block
                (plan.slots, 0),
                (plan.lengths, 1),
            )
            filled_up = [numbers + num_fillers * [filler] for numbers, filler in rows]
            (sent,) = self._send([list(chain(*filled_up))], plan)
            buffers.numbers.copy_(sent)

    def begin_filled(self, buffers: DecodeBuffers) -> None:
        """Let the layers read the buffers. Part of what is captured: no transfer, no decision."""
        decode = DecodeStep(self._table, buffers.slots, buffers.lengths)
        self._step = _Step(buffers.places.long(), decode, ())

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None = None,
    ) -> Tensor:
        """query [T, H, D], key and value [T, Hkv, D] -> [T, H, Dv]. See KvCache."""
        step = self._step
        assert step is not None, "the step was not begun"
        own = self._layers.get(layer)
        if own is None:
            own = self._new_layer(layer, query.shape[1], key[0], value[0])
        keys, values = own.pages.flat  # [P * S, Hkv, D]
        keys.index_copy_(0, step.places, key)
        values.index_copy_(0, step.places, value)
        outputs = []
        if step.decode is not None:
            singles = query[: step.decode.lengths.shape[0]]
            outputs.append(own.kernels.decode(singles, own.pages, step.decode, scale, window))
        for rows, prefill in step.prefills:
            if prefill.seen_places is None:
                seen = key[rows], value[rows]
            else:
                seen = keys[prefill.seen_places], values[prefill.seen_places]
            outputs.append(own.kernels.prefill(query[rows], *seen, prefill, scale, window))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _carry_out(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            self._book.check_blocks((copy.source, copy.target))
            source, target = copy.source + SCRATCH_BLOCKS, copy.target + SCRATCH_BLOCKS
            for layer in self._layers.values():
                for pages in (layer.pages.keys, layer.pages.values):
                    pages[target, : copy.num_tokens] = pages[source, : copy.num_tokens]

    @contextmanager
    def _forgetting_on_failure(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except Exception:
            # The table may lack what the book has noted already.
            for chunk in batch.chunks:
                self._book.forget(chunk.slot)
            raise

    def _send(self, parts: Sequence[list[int]], plan: StepPlan) -> tuple[Tensor, ...]:
        """Bring numbers to the device, in one transfer with what is new in the table."""
        parts = [*parts, plan.new_cells, plan.new_blocks]
        numbers = torch.tensor(
            list(chain(*parts)), dtype=torch.int32, pin_memory=self.device.type == "cuda"
        )
        # Pinned memory is not used again before the copy out of it is done: torch sees to that.
        sent = numbers.to(self.device, non_blocking=True)
        *views, cells, blocks = torch.split(sent, [len(part) for part in parts])
        if plan.new_cells:
            self._table.view(-1).index_copy_(0, cells.long(), blocks)
        return tuple(views)

    def _prefill(
        self, group: PrefillGroup, query_offsets: Tensor, key_offsets: Tensor, slots: Tensor
    ) -> tuple[slice, PrefillStep]:
        rows = slice(group.first_row, group.first_row + group.num_queries)
        seen_places = None
        if not group.is_fresh:
            seen_places = self._places_of(slots, key_offsets, group.num_keys)
        step = PrefillStep(group.starts, group.ends, query_offsets, key_offsets, seen_places)
        return rows, step

    def _places_of(self, slots: Tensor, key_offsets: Tensor, num_keys: int) -> Tensor:
        """Return the places [K] of all tokens of some sequences, one sequence after the other."""
        counts = key_offsets.diff()  # [N]
        rows = slots.repeat_interleave(counts, output_size=num_keys)  # [K]
        first_keys = key_offsets[:-1].repeat_interleave(counts, output_size=num_keys)
        positions = torch.arange(num_keys, device=self.device) - first_keys
        blocks = self._table[rows, positions // self.block_tokens]
        return blocks.long() * self.block_tokens + positions % self.block_tokens

    # --- the end -------------------------------------------------------------------------------

    def release(self, slot: int) -> None:
        """Forget which blocks a slot's sequence had; they are the scheduler's to give away."""
        self._book.forget(slot)

    def clear(self) -> None:
        """Let go of the layers' memory. A layer that is attended again gets some anew."""
        self._layers.clear()
        self._step = None


def _one_token(pages: Pages) -> tuple[Tensor, Tensor]:
    """Return tensors [Hkv, D] of a layer's kind that do not hold on to its memory."""
    return torch.empty_like(pages.keys[0, 0]), torch.empty_like(pages.values[0, 0])


def _numbers_of(group: PrefillGroup) -> tuple[list[int], list[int], list[int]]:
    """Return where its chunks begin among queries and among keys, and the slots."""
    counts = [end - start for start, end in zip(group.starts, group.ends, strict=True)]
    queries = list(accumulate(counts, initial=0))
    keys = list(accumulate(group.ends, initial=0))
    return queries, keys, list(group.slots)


def _by_three(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(tensors[::3], tensors[1::3], tensors[2::3], strict=True))
