import os
import socket
import subprocess
import sys

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

COUNTS = """
from cortex_site.process_metrics import name_files_by_host_and_process
name_files_by_host_and_process()
from prometheus_client import Counter, Histogram
Counter("requests", "All.").inc(3)
Histogram("seconds", "How long.").observe(1)
"""


def test_files_are_named_by_host_and_summed_over_processes(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", COUNTS], env=environment, check=True)
    host = socket.gethostname().replace("_", "-")
    assert len(list(tmp_path.glob(f"*_{host}-*.db"))) == len(list(tmp_path.iterdir())) == 4
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    assert registry.get_sample_value("requests_total") == 6
    assert registry.get_sample_value("seconds_count") == 2
