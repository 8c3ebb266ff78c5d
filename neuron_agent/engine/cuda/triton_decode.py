"""Decode attention over pages as Triton kernels: one query token a sequence, keys read once.

A sequence's keys are divided into parts that run side by side ("split-KV", as in Flash-Decoding,
Dao et al. 2023), and a second kernel puts the parts together by their log-sums. Heads that share
keys go through the same program. How many programs there are depends on the number of rows alone
and lengths are read on the device, so that a captured launch serves sequences of any length.

Importing this needs Triton. It knows no cache beyond the pages and the table it is given.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# (Triton has no types, and its kernels' arguments have none that Python knows.)

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuron_agent.engine.cuda.paged_attention import DecodeStep, Pages

MAX_PARTS = 32
PROGRAMS_PER_PROCESSOR = 2
TILE_BYTES = 16 * 1024
"""Keys that a program holds at once; as many of values, and both twice while the next arrive."""

LEAST_TILE_TOKENS = 16
"""The least that a matrix product on tensor cores takes; also for the heads of a group."""

NO_WINDOW = 2**30
LARGEST_HEAD = 256
LOG2_E = 1.4426950408889634
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@triton.jit
def _tiles_of_part(first, length, part, TILE: tl.constexpr):
    """Return the first tile and the end of a part. Tiles before the window are nobody's."""
    first_tile = first // TILE
    end_tile = tl.cdiv(length, TILE)
    part_tiles = tl.cdiv(end_tile - first_tile, tl.num_programs(2))
    tile_start = first_tile + part * part_tiles
    return tile_start, tl.minimum(tile_start + part_tiles, end_tile)


@triton.jit
def _add_tile(queries, key_places, value_places, is_seen, is_size, scale_log2, most, total, mixed):
    """Return the running softmax with the keys and values at these places [N, D] in it."""
    is_there = is_seen[:, None] & is_size[None, :]
    key = tl.load(key_places, mask=is_there, other=0.0)  # [N, D]
    scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale_log2  # [G, N]
    scores = tl.where(is_seen[None, :], scores, float("-inf"))
    new_most = tl.maximum(most, tl.max(scores, 1))
    weights = tl.exp2(scores - new_most[:, None])
    fading = tl.exp2(most - new_most)
    value = tl.load(value_places, mask=is_there, other=0.0)  # [N, D]
    product = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return new_most, total * fading + tl.sum(weights, 1), mixed * fading[:, None] + product


# A step's numbers lie anywhere in what was sent, and windows are of any size: neither is worth a
# kernel of its own, compiled while sequences wait.
@triton.jit(do_not_specialize=["window"], do_not_specialize_on_alignment=["slots", "lengths"])
def _attend_part(
    query,
    keys,
    values,
    table,
    slots,
    lengths,
    out,
    log_sums,
    scale_log2,
    window,
    query_row_stride,
    query_head_stride,
    key_block_stride,
    key_token_stride,
    key_head_stride,
    value_block_stride,
    value_token_stride,
    value_head_stride,
    table_stride,
    out_row_stride,
    out_head_stride,
    out_part_stride,
    sum_row_stride,
    sum_head_stride,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """One part of one sequence's keys, for the query heads of one shared head."""
    row, shared_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)

    # 1. Which tiles are this part's.
    length = tl.load(lengths + row)
    first = tl.maximum(length - window, 0)
    tile_start, tile_end = _tiles_of_part(first, length, part, TILE)

    # 2. The queries of the group's heads.
    group = tl.arange(0, GROUP_PADDED)  # [G]
    size = tl.arange(0, SIZE_PADDED)  # [D]
    is_head = group < GROUP
    is_size = size < SIZE
    heads = shared_head * GROUP + group
    is_place = is_head[:, None] & is_size[None, :]
    query_base = query + row * query_row_stride
    query_places = query_base + heads[:, None] * query_head_stride + size[None, :]
    queries = tl.load(query_places, mask=is_place, other=0.0)  # [G, D]

    # 3. A running softmax over the tiles; a tile never reaches over a block's end.
    block_row = table + tl.load(slots + row).to(tl.int64) * table_stride
    most = tl.full([GROUP_PADDED], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PADDED], tl.float32)
    mixed = tl.zeros([GROUP_PADDED, SIZE_PADDED], tl.float32)
    for tile in range(tile_start, tile_end):
        start = tile * TILE
        offset = tl.arange(0, TILE)  # [N]
        is_seen = (start + offset >= first) & (start + offset < length)
        block = tl.load(block_row + start // BLOCK).to(tl.int64)
        token = start % BLOCK + offset
        key_base = keys + block * key_block_stride + shared_head * key_head_stride
        value_base = values + block * value_block_stride + shared_head * value_head_stride
        key_places = key_base + token[:, None] * key_token_stride + size[None, :]
        value_places = value_base + token[:, None] * value_token_stride + size[None, :]
        most, total, mixed = _add_tile(
            queries, key_places, value_places, is_seen, is_size, scale_log2, most, total, mixed
        )

    # 4. Leave the part's mean and its weight. A part without tiles weighs nothing and leaves no
    #    mean.
    sum_places = log_sums + row * sum_row_stride + heads * sum_head_stride + part
    if tile_start < tile_end:
        tl.store(sum_places, most + tl.log2(total), mask=is_head)
        out_base = out + row * out_row_stride + part * out_part_stride
        out_places = out_base + heads[:, None] * out_head_stride + size[None, :]
        tl.store(out_places, mixed / total[:, None], mask=is_place)
    else:
        tl.store(sum_places, most, mask=is_head)  # minus infinity, as it began


@triton.jit
def _combine_parts(
    parts,
    log_sums,
    out,
    part_row_stride,
    part_head_stride,
    part_stride,
    sum_row_stride,
    sum_head_stride,
    out_row_stride,
    out_head_stride,
    NUM_PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PADDED: tl.constexpr,
):
    """The mean of one head's parts, each with its weight."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.arange(0, NUM_PARTS)  # [S], a power of two
    size = tl.arange(0, SIZE_PADDED)  # [D]
    is_size = size < SIZE
    logs = tl.load(log_sums + row * sum_row_stride + head * sum_head_stride + part)
    weights = tl.exp2(logs - tl.max(logs, 0))
    weights = weights / tl.sum(weights, 0)
    # Only an empty part's log is minus infinity; nothing was written there.
    is_filled = logs != float("-inf")
    means = tl.load(
        parts
        + row * part_row_stride
        + head * part_head_stride
        + part[:, None] * part_stride
        + size[None, :],
        mask=is_filled[:, None] & is_size[None, :],
        other=0.0,
    )  # [S, D]
    mixed = tl.sum(means * weights[:, None], 0)
    tl.store(
        out + row * out_row_stride + head * out_head_stride + size,
        mixed.to(out.dtype.element_ty),
        mask=is_size,
    )


class TritonDecode:
    """The kernels as a DecodeAttention, for a device of so many multiprocessors."""

    def __init__(self, num_processors: int) -> None:
        self._num_processors = num_processors

    def suits(self, pages: Pages) -> bool:
        """Whether the kernels are made for such pages."""
        size, block_tokens = pages.keys.shape[-1], pages.block_tokens
        return (
            pages.keys.dtype in DTYPES
            and size == pages.values.shape[-1]
            and size <= LARGEST_HEAD
            and block_tokens >= LEAST_TILE_TOKENS
            and block_tokens & (block_tokens - 1) == 0  # a power of two, as tiles are
        )

    def __call__(
        self, query: Tensor, pages: Pages, step: DecodeStep, scale: float, window: int | None
    ) -> Tensor:
        """query [n, H, D] -> [n, H, D]; the query's numbers lie side by side within a head."""
        num_rows, num_heads, size = query.shape
        num_shared = pages.keys.shape[2]
        num_parts = choose_num_parts(num_rows * num_shared, self._num_processors)
        out = query.new_empty(num_rows, num_heads, size)
        log_sums = query.new_empty(num_rows, num_heads, num_parts, dtype=torch.float32)
        # A single part is the whole, in the output's own dtype.
        parts = (
            out.unsqueeze(2)
            if num_parts == 1
            else query.new_empty(num_rows, num_heads, num_parts, size, dtype=torch.float32)
        )  # [n, H, S, D]
        group = num_heads // num_shared
        size_padded = max(LEAST_TILE_TOKENS, triton.next_power_of_2(size))
        _attend_part[(num_rows, num_shared, num_parts)](
            query,
            pages.keys,
            pages.values,
            step.table,
            step.slots,
            step.lengths,
            parts,
            log_sums,
            scale * LOG2_E,
            NO_WINDOW if window is None else window,
            *query.stride()[:2],
            *pages.keys.stride()[:3],
            *pages.values.stride()[:3],
            step.table.stride(0),
            *parts.stride()[:3],
            *log_sums.stride()[:2],
            GROUP=group,
            GROUP_PADDED=max(LEAST_TILE_TOKENS, triton.next_power_of_2(group)),
            SIZE=size,
            SIZE_PADDED=size_padded,
            BLOCK=pages.block_tokens,
            TILE=tile_tokens(pages.block_tokens, size_padded * query.itemsize),
            num_warps=4,
            num_stages=2,
            enable_fp_fusion=True,
        )
        if num_parts > 1:
            _combine_parts[(num_rows, num_heads)](
                parts,
                log_sums,
                out,
                *parts.stride()[:3],
                *log_sums.stride()[:2],
                *out.stride()[:2],
                NUM_PARTS=num_parts,
                SIZE=size,
                SIZE_PADDED=size_padded,
                enable_fp_fusion=True,
            )
        return out


def choose_num_parts(num_sequence_heads: int, num_processors: int) -> int:
    """Return into how many parts each sequence's keys are divided: a power of two.

    As many as give every processor two programs. It must not depend on lengths: a captured
    launch keeps it. Parts that turn out empty end at once.
    """
    wanted = PROGRAMS_PER_PROCESSOR * num_processors / num_sequence_heads
    num_parts = 1
    while num_parts < wanted and num_parts < MAX_PARTS:
        num_parts *= 2
    return num_parts


def tile_tokens(block_tokens: int, token_bytes: int) -> int:
    """Return how many keys a program takes at once; a block is a whole number of times that."""
    tile = block_tokens
    while tile > LEAST_TILE_TOKENS and tile * token_bytes > TILE_BYTES:
        tile //= 2
    return tile
