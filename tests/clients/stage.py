"""What clients are run against: the demo model in real processes, a scripted neuron in this one.

It starts nothing: the fixtures do. It knows no client.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.demo import demo_model_folder
from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.http import get_json
from tests.fakes.neuron import FakeNeuron
from tests.inference.world import Served

DEMO_MODEL = "cortex-demo"
CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class Demo:
    """`manage.py up` with the demo model, which says the same to the same prompt each time."""

    cluster: Cluster
    hold: Path
    """While this file exists, answers stand still after their first token."""

    @property
    def url(self) -> str:
        return self.cluster.api

    def wait_for_records(self, began: float) -> list[dict[str, Any]]:
        """Return what was asked since then, once the gateway is through with it."""

        def records() -> list[dict[str, Any]]:
            rows = self.cluster.status()["requests"]
            return [row for row in rows if row["at"] >= began]

        return wait_until(records, what="a record")

    def wait_for_rest(self) -> None:
        """Return once nothing is running or waiting in the neuron."""
        wait_until(lambda: not self._num_running(), 10.0, "nothing in flight")

    def _num_running(self) -> int:
        models = get_json(f"{self.cluster.neuron}/health")["models"]
        return sum(model["in_flight"] + model["queue_depth"] for model in models)


@contextlib.contextmanager
def aborted(demo: Demo) -> Iterator[None]:
    """What is asked inside is left in the middle: afterwards nothing is in flight anywhere."""
    began = time.time()
    yield
    demo.wait_for_rest()
    records = demo.wait_for_records(began)
    assert [record["status"] for record in records] == [CLIENT_LEFT], records


def make_greedy(model_folder: Path) -> None:
    """Have the demo model take the likeliest token where a client names no temperature."""
    model_folder.unlink()
    model_folder.mkdir()
    for file in demo_model_folder().iterdir():
        (model_folder / file.name).symlink_to(file)
    settings = model_folder / "generation_config.json"
    greedy = {**json.loads(settings.read_text()), "do_sample": False}
    settings.unlink()
    settings.write_text(json.dumps(greedy))


@dataclass(frozen=True, slots=True)
class Scripted:
    """A gateway before a fake neuron."""

    neuron: FakeNeuron
    gateway: Served

    @property
    def url(self) -> str:
        return self.gateway.url

    def tool_requests(self) -> list[dict[str, Any]]:
        """What the neuron was asked with tools on offer, in order."""
        asked = self.neuron.requests_to("/v1/chat/completions")
        bodies = [json.loads(request.body) for request in asked]
        return [body for body in bodies if body.get("tools")]
