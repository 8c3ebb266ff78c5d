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
    name = f"{host}-{os.getpid()}"

    def rename() -> None:
        nonlocal name
        name = f"{host}-{os.getpid()}"

    # Asked for at every count: to make it each time would be half of what counting costs.
    os.register_at_fork(after_in_child=rename)
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]
