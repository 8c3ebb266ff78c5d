"""What tests of compiled kernels need of the machine they run on."""

import ctypes
import tempfile
from functools import cache
from pathlib import Path

import pytest

from neuron_agent.engine.cpu import compiling
from neuron_agent.engine.cpu.native import Native, native

_kernels = native()

needs_kernels = pytest.mark.skipif(_kernels is None, reason="no C++ compiler is installed")
needs_products = pytest.mark.skipif(
    _kernels is None or not _kernels.has_products,
    reason="no C++ compiler, or a processor without AVX-512 BF16 and VNNI",
)


@cache
def portable_kernels() -> Native:
    """The kernels as a processor without AVX-512 gets them."""
    if "avx2" not in compiling._processor():
        pytest.skip("not this kind of processor")
    flags = [flag.replace("native", "x86-64-v3") for flag in compiling.FLAGS]
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        patched.setattr(compiling, "FLAGS", tuple(flags))
        return Native(ctypes.CDLL(str(compiling.compiled(Path(folder)))))
