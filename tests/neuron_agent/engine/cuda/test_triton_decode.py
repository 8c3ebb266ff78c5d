"""The decode kernels against plain attention, in Triton's interpreter; choices by themselves."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.neuron_agent.engine.cuda.decode_cases import CASES, INTERPRETED, tolerance

pytest.importorskip("triton")

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Run all cases in a process of their own: see decode_cases."""
    program = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.neuron_agent.engine.cuda.decode_cases"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert program.returncode == 0, program.stderr[-2000:]
    read: dict[str, float] = json.loads(program.stdout)
    return read


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPRETED)
def test_kernels_give_what_plain_attention_gives(name: str, errors: dict[str, float]) -> None:
    assert errors[name] <= tolerance(CASES[name].dtype)


def test_keys_are_divided_until_every_processor_has_work() -> None:
    from neuron_agent.engine.cuda.triton_decode import MAX_PARTS, choose_num_parts

    for num_processors in (1, 40, 132):
        for num_sequence_heads in range(1, 3000, 7):
            num_parts = choose_num_parts(num_sequence_heads, num_processors)
            assert num_parts & (num_parts - 1) == 0
            assert num_parts * num_sequence_heads >= 2 * num_processors or num_parts == MAX_PARTS
            assert num_parts == 1 or num_parts // 2 * num_sequence_heads < 2 * num_processors


@pytest.mark.parametrize("block_tokens", [16, 64, 256])
@pytest.mark.parametrize("token_bytes", [32, 256, 512, 1024])
def test_tiles_divide_blocks_and_fit_the_chip(block_tokens: int, token_bytes: int) -> None:
    from neuron_agent.engine.cuda.triton_decode import LEAST_TILE_TOKENS, TILE_BYTES, tile_tokens

    tile = tile_tokens(block_tokens, token_bytes)
    assert block_tokens % tile == 0
    assert tile * token_bytes <= TILE_BYTES or tile == LEAST_TILE_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_to_tensor_cores_and_loads_that_run_ahead(
    capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes more than the compiler does; no GPU is needed to compile for one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from neuron_agent.engine.cuda.triton_decode import _attend_part

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = dict.fromkeys(["query", "keys", "values"], "*bf16")
    pointers |= dict.fromkeys(["table", "slots", "lengths"], "*i32")
    pointers |= {"out": "*fp32", "log_sums": "*fp32", "scale_log2": "fp32"}
    sizes = {"GROUP": 4, "GROUP_PADDED": 16, "SIZE": 128, "SIZE_PADDED": 128}
    sizes |= {"BLOCK": 64, "TILE": 64}
    names = list(inspect.signature(_attend_part.fn).parameters)
    kinds = {name: "constexpr" if name in sizes else pointers.get(name, "i32") for name in names}
    odd = {"scale_log2", "window", "slots", "lengths", "table_stride", *sizes}
    aligned = {
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in odd
    }
    compiled = triton.compile(
        ASTSource(fn=_attend_part, signature=kinds, constexprs=sizes, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True},
    )
    assert "mma.sync" in compiled.asm["ptx"]
    assert "cp.async" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 96 * 1024
