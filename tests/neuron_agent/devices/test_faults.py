import pytest

from neuron_agent.devices.faults import TABLE, FaultKind, Row, classify


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class AcceleratorError(RuntimeError):
    """Named as torch's."""


# One example a row, in the row's order, worded as the drivers and libraries word them.
EXAMPLES: list[Exception] = [
    OutOfMemoryError("Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    MemoryError(),
    AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    AcceleratorError("CUDA error: invalid configuration argument"),
    RuntimeError("CUDA error: invalid device function"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: the launch timed out and was terminated"),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: misaligned address"),
    RuntimeError("CUDA error: an illegal instruction was encountered"),
    RuntimeError("CUDA error: invalid program counter"),
    RuntimeError("CUDA error: hardware stack error"),
    RuntimeError("GPU is lost"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:2006, unhandled cuda error"),
    AcceleratorError("something new"),
]


@pytest.mark.parametrize(
    ("row", "error"), list(zip(TABLE, EXAMPLES, strict=True)), ids=[row.pattern for row in TABLE]
)
def test_each_row_decides_its_example(row: Row, error: Exception) -> None:
    line = f"{type(error).__name__}: {error}"
    assert next(candidate for candidate in TABLE if candidate.matches(line)) is row
    assert classify(error) is row.kind


@pytest.mark.parametrize(
    "error",
    [
        ValueError("expected 4 dimensions"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
        KeyError("temperature"),
        AssertionError("a mistake of ours"),
    ],
)
def test_other_errors_concern_one_request(error: Exception) -> None:
    assert classify(error) is FaultKind.REQUEST


def test_a_cause_counts_as_much_as_what_wraps_it() -> None:
    wrapped = ValueError("the step failed")
    wrapped.__cause__ = RuntimeError("CUDA error: device-side assert triggered")
    assert classify(wrapped) is FaultKind.POISON


def test_poison_outweighs_memory() -> None:
    error = MemoryError()
    error.__context__ = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert classify(error) is FaultKind.POISON


def test_a_chain_that_bites_its_tail_is_followed_once() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) is FaultKind.REQUEST
