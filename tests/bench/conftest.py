"""Makes the benchmarks' scripts importable: they import their neighbours by bare names.

Behind everything else, so that none of them hides a library.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
