"""Runs the decode kernels on random pages and says how far they are from plain attention.

To be run as a program, with TRITON_INTERPRET=1 where there is no GPU: Triton reads that when it
is imported, so the interpreter needs a process of its own. Prints one JSON object.
"""

import json
import sys
from dataclasses import dataclass, field

import torch

from neuron_agent.engine.cuda.paged_attention import DecodeStep, Pages, plain_decode


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...] = (5, 33)
    num_shared_heads: int = 2
    group: int = 2
    size: int = 32
    window: int | None = None
    dtype: torch.dtype = torch.float32
    block_tokens: int = 16
    num_processors: int = 8
    seed: int = field(default=5, compare=False)


CASES = {
    "length_one": Case(lengths=(1,)),
    "block_borders": Case(lengths=(15, 16, 17, 33, 48), num_shared_heads=1),
    "most_parts_empty": Case(lengths=(1, 70), num_shared_heads=1, num_processors=500),
    "single_part": Case(lengths=(40, 3), num_processors=1),
    "window_inside_a_tile": Case(lengths=(40, 5), window=7),
    "window_at_a_border": Case(lengths=(48, 33, 32), window=16),
    "window_of_one": Case(lengths=(33, 1), window=1),
    "window_wider_than_all": Case(lengths=(33, 20), window=100),
    "group_1": Case(group=1),
    "group_5": Case(group=5),
    "group_8": Case(group=8),
    "group_20": Case(group=20, lengths=(35,)),
    "size_64": Case(size=64),
    "size_80": Case(size=80),
    "size_96": Case(size=96),
    "size_128": Case(size=128),
    "size_256": Case(size=256, num_shared_heads=1),
    "bfloat16": Case(dtype=torch.bfloat16, size=64),
    "float16": Case(dtype=torch.float16, size=64),
    "tiles_smaller_than_blocks": Case(block_tokens=64, size=256, lengths=(130, 64)),
    "real_blocks": Case(block_tokens=64, lengths=(130, 64, 1), size=64),
}

# The interpreter multiplies matrices of bfloat16 by their bits, as if they were integers.
INTERPRETED = [name for name, case in CASES.items() if case.dtype != torch.bfloat16]


def tolerance(dtype: torch.dtype) -> float:
    return {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def largest_error(case: Case, device: torch.device) -> float:
    """Return the largest difference to plain attention in float32 over the same numbers."""
    from neuron_agent.engine.cuda.triton_decode import TritonDecode

    query, pages, step = build(case, device)
    scale = case.size**-0.5
    ours = TritonDecode(case.num_processors)(query, pages, step, scale, case.window)
    exact_pages = Pages(pages.keys.float(), pages.values.float())
    exact = plain_decode(query.float(), exact_pages, step, scale, case.window)
    return float((ours.float() - exact).abs().max())


def build(case: Case, device: torch.device) -> tuple[torch.Tensor, Pages, DecodeStep]:
    """Blocks of the sequences lie in random order, NaN in whatever they do not fill."""
    generator = torch.Generator().manual_seed(case.seed)
    num_rows, size = len(case.lengths), case.size
    num_heads = case.num_shared_heads * case.group
    width = -(-max(case.lengths) // case.block_tokens)
    num_blocks = num_rows * width + 2
    shape = num_blocks, case.block_tokens, case.num_shared_heads, size
    keys = torch.full(shape, float("nan"))
    values = torch.full(shape, float("nan"))
    table = torch.zeros(num_rows, width, dtype=torch.int32)
    order = torch.randperm(num_blocks, generator=generator).tolist()
    for row, length in enumerate(case.lengths):
        for position in range(length):
            if position % case.block_tokens == 0:
                table[row, position // case.block_tokens] = order.pop()
            block = table[row, position // case.block_tokens]
            token = position % case.block_tokens
            keys[block, token] = torch.randn(shape[2:], generator=generator)
            values[block, token] = torch.randn(shape[2:], generator=generator)
    # As it comes out of a fused projection: heads apart by more than their size.
    query = torch.randn(num_rows, num_heads + 3, size, generator=generator)[:, :num_heads]
    step = DecodeStep(
        table.to(device),
        torch.arange(num_rows, dtype=torch.int32, device=device),
        torch.tensor(case.lengths, dtype=torch.int32, device=device),
    )
    pages = Pages(keys.to(device, case.dtype), values.to(device, case.dtype))
    return query.to(device, case.dtype), pages, step


if __name__ == "__main__":
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    json.dump({name: largest_error(CASES[name], cpu) for name in INTERPRETED}, sys.stdout)
