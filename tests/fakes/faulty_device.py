"""The real device process, with a fault on demand: an error, or a hang, within an engine's step.

The variable FAULTY_DEVICE_FILE names a file. While it exists and its first line is this process's
device, the next batch does what the second line says when it is computed, which is where a device
fails: `hang`, or an error as `TypeName: text`. It takes the file away first, so that each fault
happens once. Everything else is real.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from neuron_agent.devices import process
from neuron_agent.engine.engine import Engine
from neuron_agent.scheduling.batch import Batch

FAULT_FILE = "FAULTY_DEVICE_FILE"
HANG = "hang"
HANG_SECONDS = 3600.0

_real_compute = Engine._compute


def faulty_compute(engine: Engine, batch: Batch) -> Any:
    fault = take_fault(Path(os.environ[FAULT_FILE]), process.parse_options(sys.argv[1:]).index)
    if fault == HANG:
        time.sleep(HANG_SECONDS)
    if fault:
        type_name, _, text = fault.partition(": ")
        raise type(type_name, (RuntimeError,), {})(text)
    return _real_compute(engine, batch)


def take_fault(file: Path, device: int) -> str | None:
    """Return the fault that waits for a device, and take it away; None if there is none."""
    try:
        named, fault = file.read_text().splitlines()
    except FileNotFoundError:
        return None
    if int(named) != device:
        return None
    file.unlink()
    return fault


def put_fault(file: Path, device: int, fault: str) -> None:
    """Have the next batch on a device fail; all of the fault is there at once, or none."""
    draft = file.with_suffix(".draft")
    draft.write_text(f"{device}\n{fault}\n")
    draft.rename(file)


def main() -> None:
    Engine._compute = faulty_compute  # type: ignore[method-assign]
    process.main()


if __name__ == "__main__":
    main()
