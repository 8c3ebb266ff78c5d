"""The whole of Cortex in real processes, once on the embedded defaults, once on real servers."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import Cluster
from tests.servers import find_postgres, find_redis, postgres_server, redis_server

BACKENDS = [
    pytest.param("embedded", id="embedded"),
    pytest.param(
        "production",
        id="production",
        marks=[
            pytest.mark.production,
            pytest.mark.skipif(
                not (find_postgres() and find_redis()), reason="no PostgreSQL or no Redis here"
            ),
        ],
    ),
]
MEMORY_FOR_ONE_MODEL_MB = 80
ENVIRONMENT = {
    "NEURON_DEVICES__CPU": "1",
    "NEURON_DEVICES__CPU_MEMORY_MB": str(MEMORY_FOR_ONE_MODEL_MB),
    "CORTEX_MIN_RESIDENCY_SECONDS": "0",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session", params=BACKENDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        environment = dict(ENVIRONMENT)
        if request.param == "production":
            environment["CORTEX_DATABASE_URL"] = stack.enter_context(postgres_server())
            environment["CORTEX_REDIS_URL"] = stack.enter_context(redis_server())
        folder = Path(tempfile.mkdtemp(prefix="cortex-e2e-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        running = Cluster(folder / "data", environment)
        try:
            running.start()
            yield running
        finally:
            print("\n".join(running.output[-200:]))  # noqa: T201 - shown when a test failed
            assert running.stop() == 0
