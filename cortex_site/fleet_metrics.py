"""What the rows say about the fleet, as Prometheus gauges, read when a scrape asks.

Requests are counted where they happen, in the gateway; here are only facts that have no moment.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from django.db import DatabaseError
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fleet.planner.phases import LIVE, NeuronPhase
from fleet.planner.snapshot import FleetSnapshot

log = logging.getLogger(__name__)


class FleetCollector(Collector):
    """Makes gauges of what `read` returns at each scrape."""

    def __init__(self, read: Callable[[], FleetSnapshot]) -> None:
        self._read = read

    def describe(self) -> Iterator[Metric]:
        return iter(())  # nothing is read when the collector is registered

    def collect(self) -> Iterator[Metric]:
        try:
            snapshot = self._read()
        except DatabaseError as error:  # what the processes counted is told all the same
            log.warning("The fleet's figures cannot be read: %s", error)
            return
        yield from _neurons(snapshot)
        yield from _placements(snapshot)


def _neurons(snapshot: FleetSnapshot) -> Iterator[Metric]:
    labels = ["neuron", "device"]
    up = GaugeMetricFamily("cortex_neuron_up", "1 = healthy.", labels=["neuron"])
    used = GaugeMetricFamily("cortex_device_vram_used_bytes", "Memory in use.", labels=labels)
    free = GaugeMetricFamily("cortex_device_vram_free_bytes", "Memory free.", labels=labels)
    for neuron in snapshot.neurons:
        up.add_metric([neuron.name], float(neuron.phase is NeuronPhase.HEALTHY))
        for device in neuron.devices:
            where = [neuron.name, str(device.index)]
            used.add_metric(where, device.total_bytes - device.free_bytes)
            free.add_metric(where, device.free_bytes)
    yield from (up, used, free)


def _placements(snapshot: FleetSnapshot) -> Iterator[Metric]:
    live = [placement for placement in snapshot.placements if placement.phase in LIVE]
    by_phase = Counter({str(phase): 0 for phase in sorted(LIVE)})
    in_flight: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    for placement in live:
        by_phase[placement.phase] += 1
        in_flight[placement.model_id] += placement.in_flight
        queued[placement.model_id] += placement.queued
    yield _gauge("cortex_placements", "Placements by phase.", "phase", by_phase)
    yield _gauge("cortex_model_in_flight", "Requests in neurons.", "model", in_flight)
    yield _gauge("cortex_model_queue_depth", "Requests queued in neurons.", "model", queued)


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value_of, value in values.items():
        family.add_metric([value_of], value)
    return family
