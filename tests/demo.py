"""The demo model for tests: built once on a machine and shared by all test processes."""

import subprocess
import sys
from pathlib import Path

_REPOSITORY = Path(__file__).parent.parent
_FOLDER = _REPOSITORY / "data" / "test" / "cortex-demo"


def demo_model_folder() -> Path:
    """Return the demo model's folder; takes a minute if it must be built or was changed.

    Built in a process of its own: training sets seeds and thread counts, which are nobody else's.
    """
    command = [sys.executable, "-m", "neuron_agent.demo_model", str(_FOLDER)]
    subprocess.run(command, check=True, cwd=_REPOSITORY, stdout=subprocess.DEVNULL)
    return _FOLDER
