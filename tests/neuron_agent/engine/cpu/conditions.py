"""What tests of compiled kernels need of the machine they run on."""

import pytest

from neuron_agent.engine.cpu.native import native

_kernels = native()

needs_kernels = pytest.mark.skipif(_kernels is None, reason="no C++ compiler is installed")
needs_products = pytest.mark.skipif(
    _kernels is None or not _kernels.has_products,
    reason="no C++ compiler, or a processor without AVX-512 BF16 and VNNI",
)
