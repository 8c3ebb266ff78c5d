"""The real device process, which a test can hold between two tokens of an answer.

The variable HELD_DEVICE_FILE names a file. While it exists, a batch that only continues answers is
not computed, and a second file says that one waits. So an answer is in its middle for as long as a
test likes, with the model's first word said. Everything else is real.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuron_agent.devices import process
from neuron_agent.engine.engine import Engine
from neuron_agent.scheduling.batch import Batch

HOLD_FILE = "HELD_DEVICE_FILE"
LOOK_SECONDS = 0.01

_real_compute = Engine._compute


def patient_compute(engine: Engine, batch: Batch) -> Any:
    hold = Path(os.environ[HOLD_FILE])
    if all(chunk.is_decode for chunk in batch.chunks):
        while hold.exists():
            _reached(hold).touch()
            time.sleep(LOOK_SECONDS)
    return _real_compute(engine, batch)


@contextlib.contextmanager
def held(hold: Path) -> Iterator[Path]:
    """Hold answers while inside; yields the file that is there once one has begun and waits."""
    reached = _reached(hold)
    reached.unlink(missing_ok=True)
    hold.touch()
    try:
        yield reached
    finally:
        hold.unlink()


def _reached(hold: Path) -> Path:
    return hold.with_suffix(".reached")


def main() -> None:
    Engine._compute = patient_compute  # type: ignore[method-assign]
    process.main()


if __name__ == "__main__":
    main()
