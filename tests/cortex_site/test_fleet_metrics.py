import pytest
from django.db import OperationalError
from django.utils import timezone
from prometheus_client import CollectorRegistry

from cortex_site.fleet_metrics import FleetCollector
from fleet.models import Device, ModelProfile, Neuron, Placement
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.selectors import fleet_snapshot

pytestmark = pytest.mark.django_db


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: fleet_snapshot(timezone.now())))
    return registry


@pytest.fixture
def beast() -> Neuron:
    neuron = Neuron.objects.create(
        name="beast", endpoint="http://beast:13131", phase=NeuronPhase.HEALTHY
    )
    Device.objects.create(
        neuron=neuron, index=0, name="GPU", kind="cuda", total_bytes=100, free_bytes=30
    )
    return neuron


def test_gauges_say_what_the_rows_say(registry, beast):
    now = timezone.now()
    profile = ModelProfile.objects.create(model_id="org/model")
    for phase, ended_at in ((PlacementPhase.READY, None), (PlacementPhase.STOPPED, now)):
        Placement.objects.create(
            profile=profile, neuron=beast, device_indexes=[0], phase=phase, phase_since=now,
            requested_at=now, ended_at=ended_at, queued=4, in_flight=2,
        )  # fmt: skip
    device = {"neuron": "beast", "device": "0"}
    assert registry.get_sample_value("cortex_neuron_up", {"neuron": "beast"}) == 1
    assert registry.get_sample_value("cortex_device_vram_used_bytes", device) == 70
    assert registry.get_sample_value("cortex_device_vram_free_bytes", device) == 30
    assert registry.get_sample_value("cortex_placements", {"phase": "ready"}) == 1
    assert registry.get_sample_value("cortex_placements", {"phase": "failed"}) is None
    assert registry.get_sample_value("cortex_placements", {"phase": "loading"}) == 0
    assert registry.get_sample_value("cortex_model_queue_depth", {"model": "org/model"}) == 4
    assert registry.get_sample_value("cortex_model_in_flight", {"model": "org/model"}) == 2


def test_a_database_that_is_away_costs_only_the_fleets_figures():
    def away():
        raise OperationalError("no route to host")

    assert list(FleetCollector(away).collect()) == []
