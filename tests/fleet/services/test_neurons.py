"""Neurons as operators want them, and one that a gateway found silent."""

from datetime import timedelta

import pytest

from fleet import controller, services
from fleet.models import Cooldown, FleetEvent, ModelProfile, Neuron, Placement
from fleet.planner.phases import NeuronPhase, PlacementPhase
from fleet.services.lease import give_lease_back, take_lease
from fleet.token_vault import decrypt_token
from tests.world import START

pytestmark = pytest.mark.django_db


@pytest.fixture
def beast(db: None) -> Neuron:
    return services.add_neuron("beast", "http://beast:13131/", "s3cret", START, "owner")


def test_adding_again_changes_the_address_and_keeps_the_token(beast: Neuron) -> None:
    services.set_enabled(beast.pk, False, START)
    again = services.add_neuron("beast", "https://BEAST:443", None, START)
    assert (again.pk, again.endpoint, again.enabled) == (beast.pk, "https://BEAST:443", True)
    assert decrypt_token(again.token_encrypted) == "s3cret"


def test_another_host_is_not_told_the_token_of_the_first(beast: Neuron) -> None:
    assert services.change_endpoint(beast.pk, "http://10.0.0.7:13131", START)
    beast.refresh_from_db()
    assert (beast.endpoint, beast.token_encrypted) == ("http://10.0.0.7:13131", None)
    message = FleetEvent.objects.get(message__contains="10.0.0.7").message
    assert "token removed, as it was for beast" in message
    assert not services.change_endpoint(beast.pk, "http://10.0.0.8:13131", START)


def test_adding_again_on_another_host_takes_the_new_token(beast: Neuron) -> None:
    again = services.add_neuron("beast", "http://10.0.0.7:13131", "s3cret", START)
    assert decrypt_token(again.token_encrypted) == "s3cret"
    again = services.add_neuron("beast", "http://10.0.0.8:13131", None, START)
    assert again.token_encrypted is None


def test_adding_the_same_again_is_no_event(beast: Neuron) -> None:
    num_events = FleetEvent.objects.count()
    services.add_neuron("beast", "http://beast:13131", "s3cret", START)
    assert FleetEvent.objects.count() == num_events


@pytest.mark.parametrize(
    "endpoint",
    [
        "beast:13131",
        "ftp://beast",
        "http://",
        "http://beast:13131/path",
        "http://a b",
        "http://b\n",
    ],
)
def test_an_address_that_is_none_is_refused(db: None, endpoint: str) -> None:
    with pytest.raises(services.InvalidFleetChange, match="endpoint"):
        services.add_neuron("beast", endpoint, None, START)
    assert not Neuron.objects.exists()


@pytest.mark.parametrize("endpoint", ["http://neuron:13131", "https://[::1]:13131", "http://b.c"])
def test_bare_hosts_and_addresses_are_fine(db: None, endpoint: str) -> None:
    assert services.add_neuron("beast", endpoint, None, START).endpoint == endpoint


def test_a_nonsense_name_is_refused(db: None) -> None:
    with pytest.raises(services.InvalidFleetChange, match="name"):
        services.add_neuron("no spaces please", "http://beast:13131", None, START)


def test_switches_say_whether_they_changed_anything(beast: Neuron) -> None:
    assert services.drain(beast.pk, START)
    assert not services.drain(beast.pk, START)
    assert services.uncordon(beast.pk, START)
    assert not services.uncordon(beast.pk, START)
    beast.refresh_from_db()
    assert (beast.cordoned, beast.draining) == (False, False)


def test_a_refused_connection_makes_it_unhealthy_at_once_and_once(beast: Neuron) -> None:
    assert not services.report_unreachable(beast.pk, "refused", START)
    Neuron.objects.update(phase=NeuronPhase.HEALTHY)
    assert services.report_unreachable(beast.pk, "refused", START)
    assert not services.report_unreachable(beast.pk, "refused", START)
    assert not services.report_unreachable(404, "refused", START)
    assert Neuron.objects.get().phase == NeuronPhase.UNHEALTHY


def test_a_neuron_with_models_is_not_removed(beast: Neuron) -> None:
    profile = ModelProfile.objects.create(model_id="a")
    placement = Placement.objects.create(
        profile=profile, neuron=beast, phase="ready", phase_since=START, requested_at=START
    )
    with pytest.raises(services.InvalidFleetChange, match="drain it first"):
        services.remove_neuron(beast.pk, START)
    with pytest.raises(services.InvalidFleetChange, match="unload it first"):
        services.remove_profile(profile.pk, START)
    Placement.objects.filter(pk=placement.pk).update(phase=PlacementPhase.STOPPED)
    services.remove_neuron(beast.pk, START, "owner")
    services.remove_profile(profile.pk, START, "owner")
    assert not Neuron.objects.exists()
    assert FleetEvent.objects.filter(actor="owner", message="beast removed").exists()


@pytest.mark.parametrize("switch", ["unload", "drain", "disable"])
def test_a_dead_neuron_and_its_models_can_be_removed(beast: Neuron, switch: str) -> None:
    Neuron.objects.update(phase=NeuronPhase.LOST)
    profile = ModelProfile.objects.create(model_id="a")
    placement = Placement.objects.create(
        profile=profile, neuron=beast, phase="lost", phase_since=START, requested_at=START
    )
    assert controller.decide(START) == ()
    if switch == "unload":
        services.request_unload("a", None, START)
    elif switch == "drain":
        services.drain(beast.pk, START)
    else:
        services.set_enabled(beast.pk, False, START)
    assert controller.decide(START) == ()
    placement.refresh_from_db()
    assert placement.phase == PlacementPhase.STOPPED
    services.remove_neuron(beast.pk, START)
    services.remove_profile(profile.pk, START)


def test_last_use_moves_forward_only(beast: Neuron) -> None:
    placement = Placement.objects.create(
        profile=ModelProfile.objects.create(model_id="a"),
        neuron=beast,
        phase_since=START,
        requested_at=START,
    )
    later = START + timedelta(seconds=5)
    services.note_used({placement.pk: later, 404: later})
    services.note_used({placement.pk: START})
    placement.refresh_from_db()
    assert placement.last_used_at == later


def test_registering_a_profile_twice_is_one_row_and_forgets_it_was_found(db: None) -> None:
    ModelProfile.objects.create(model_id="a", discovered=True)
    services.register_profile("a", source="/models/a", discovered=False)
    profile = services.register_profile("a", source="/models/a")
    assert (profile.source, profile.discovered) == ("/models/a", False)
    with pytest.raises(services.InvalidFleetChange, match="min_devices"):
        services.register_profile("b", min_devices=0)


def test_saving_a_profile_keeps_what_was_learned_meanwhile(db: None) -> None:
    read_before = services.register_profile("a")
    ModelProfile.objects.update(learned_bytes=7, load_seconds=3.0)
    read_before.quant = "int8"
    services.save_profile(read_before)
    row = ModelProfile.objects.get()
    assert (row.quant, row.learned_bytes, row.load_seconds) == ("int8", 7, 3.0)


def test_an_operators_load_lifts_the_cool_down(beast: Neuron) -> None:
    profile = ModelProfile.objects.create(model_id="a")
    Cooldown.objects.create(profile=profile, neuron=beast, until=START + timedelta(days=1))
    services.request_load("a", None, START, "owner")
    assert not Cooldown.objects.exists()


def test_a_lease_is_held_by_one_until_it_runs_out(db: None) -> None:
    later = START + timedelta(seconds=10)
    assert take_lease("watch", "one", START, 10)
    assert not take_lease("watch", "two", START, 10)
    assert take_lease("watch", "one", START, 5)
    assert take_lease("watch", "two", later, 10)
    give_lease_back("watch", "one", later)
    assert not take_lease("watch", "one", later, 10)
    give_lease_back("watch", "two", later)
    assert take_lease("watch", "one", later, 10)
