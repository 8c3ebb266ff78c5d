"""Which error means what for a device: the table.

    poison          the device's context can no longer be trusted: the process must be replaced
    out_of_memory   memory ran out: one request or load fails, the device goes on
    request         one request (or load) fails and nothing else

Errors are told apart by the names of their types and by their text, so that the table needs no
torch. The first row that matches decides; what matches no row concerns one request.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    POISON = "poison"
    OUT_OF_MEMORY = "out_of_memory"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Row:
    kind: FaultKind
    pattern: str
    """Found in "TypeName: text", in any case."""

    def matches(self, line: str) -> bool:
        return re.search(self.pattern, line, re.IGNORECASE) is not None


TABLE: tuple[Row, ...] = (
    # Memory first: its errors are CUDA errors too, and of the harmless kind.
    Row(FaultKind.OUT_OF_MEMORY, r"^(\w+\.)*OutOfMemoryError\b"),
    Row(FaultKind.OUT_OF_MEMORY, r"^MemoryError\b"),
    Row(FaultKind.OUT_OF_MEMORY, r"CUDA error: out of memory"),
    Row(FaultKind.OUT_OF_MEMORY, r"CUDA out of memory"),
    Row(FaultKind.OUT_OF_MEMORY, r"(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED"),
    Row(FaultKind.OUT_OF_MEMORY, r"(can't allocate|not enough) memory"),
    # Errors that CUDA reports before anything was launched: the context is as it was.
    Row(FaultKind.REQUEST, r"CUDA error: invalid (argument|configuration argument)"),
    Row(FaultKind.REQUEST, r"CUDA error: invalid device function"),
    Row(FaultKind.REQUEST, r"CUDA error: no kernel image is available"),
    # The sticky kind: every later call on the context fails the same way.
    Row(FaultKind.POISON, r"illegal memory access"),
    Row(FaultKind.POISON, r"device-side assert"),
    Row(FaultKind.POISON, r"unspecified launch failure"),
    Row(FaultKind.POISON, r"launch timed out"),
    Row(FaultKind.POISON, r"\bECC\b"),
    Row(FaultKind.POISON, r"misaligned address"),
    Row(FaultKind.POISON, r"illegal instruction"),
    Row(FaultKind.POISON, r"invalid (program counter|address space)"),
    Row(FaultKind.POISON, r"hardware stack error"),
    Row(FaultKind.POISON, r"bus error|fallen off the bus|GPU is lost"),
    Row(FaultKind.POISON, r"(CUBLAS|CUDNN)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"),
    Row(FaultKind.POISON, r"(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED"),
    Row(FaultKind.POISON, r"NCCL error"),
    # An error of CUDA's that nobody listed: a replaced process is cheaper than wrong answers.
    Row(FaultKind.POISON, r"CUDA (driver )?error|^(\w+\.)*AcceleratorError\b"),
)


def classify(error: BaseException) -> FaultKind:
    """Say what an error means for the device; the gravest of it and its causes counts."""
    kinds = {_kind_of(_line(cause)) for cause in _chain(error)}
    for kind in (FaultKind.POISON, FaultKind.OUT_OF_MEMORY):
        if kind in kinds:
            return kind
    return FaultKind.REQUEST


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _kind_of(line: str) -> FaultKind:
    return next((row.kind for row in TABLE if row.matches(line)), FaultKind.REQUEST)
