"""What the rows say about the fleet, as Prometheus gauges, read when a scrape asks.

Requests are measured where they happen, in the gateway; here are only facts that have no moment.
"""

from collections.abc import Iterator

from django.db import close_old_connections
from django.utils import timezone
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fleet import selectors
from fleet.planner.phases import NeuronPhase


class FleetCollector(Collector):
    """Collects in a fixed number of queries, whatever the size of the fleet."""

    def describe(self) -> Iterator[Metric]:
        return iter(())  # nothing is read when the collector is registered

    def collect(self) -> Iterator[Metric]:
        close_old_connections()
        try:
            snapshot = selectors.fleet_snapshot(timezone.now())
        finally:
            close_old_connections()
        up = GaugeMetricFamily("cortex_neuron_up", "1 = healthy.", labels=["neuron"])
        used = GaugeMetricFamily(
            "cortex_device_vram_used_bytes", "Memory in use.", labels=["neuron", "device"]
        )
        free = GaugeMetricFamily(
            "cortex_device_vram_free_bytes", "Memory free.", labels=["neuron", "device"]
        )
        for neuron in snapshot.neurons:
            up.add_metric([neuron.name], float(neuron.phase is NeuronPhase.HEALTHY))
            for device in neuron.devices:
                labels = [neuron.name, str(device.index)]
                used.add_metric(labels, device.total_bytes - device.free_bytes)
                free.add_metric(labels, device.free_bytes)
        placements = GaugeMetricFamily("cortex_placements", "By phase.", labels=["phase"])
        queued = GaugeMetricFamily(
            "cortex_model_queue_depth", "Requests queued in neurons.", labels=["model"]
        )
        num_by_phase: dict[str, int] = {}
        queued_by_model: dict[str, int] = {}
        for placement in snapshot.placements:
            num_by_phase[placement.phase] = num_by_phase.get(placement.phase, 0) + 1
            queued_by_model[placement.model_id] = (
                queued_by_model.get(placement.model_id, 0) + placement.queued
            )
        for phase, number in num_by_phase.items():
            placements.add_metric([phase], number)
        for model, number in queued_by_model.items():
            queued.add_metric([model], number)
        yield from (up, used, free, placements, queued)
