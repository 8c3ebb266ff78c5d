"""Names the files in which processes keep their figures by host and process id.

Containers that share the folder have the same process ids, and two processes must never write one
file. Files of processes that have ended stay, and should: their counters belong to the sums.
"""

import os
import socket

from prometheus_client import values


def name_files_by_host_and_process() -> None:
    """To be called before any metric is made."""
    host = socket.gethostname().replace("_", "-")  # the reader splits names at underscores
    values.ValueClass = values.MultiProcessValue(lambda: f"{host}-{os.getpid()}")  # type: ignore[no-untyped-call]
