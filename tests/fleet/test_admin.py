"""The fleet's admin pages: they show what is, and their buttons reach the services."""

from typing import Any

import pytest
from django.apps import apps
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from fleet import services
from fleet.models import Alias, Demand, Desired, ModelProfile, Neuron
from fleet.token_vault import decrypt_token
from tests.fleet.conftest import Driver, live, neuron_row, placements
from tests.world import BEAST, LARGE, PUNY, SMALL

PAGES = ("neuron", "modelprofile", "alias", "placement", "fleetevent", "demand")


@pytest.fixture
def busy_fleet(fleet: Driver) -> Driver:
    """Something of everything: a ready model, one that cannot be placed, events, an alias."""
    services.request_placement(SMALL, "gateway-1", 2, fleet.clock(), lifetime_seconds=3600)
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    ModelProfile.objects.filter(model_id=LARGE).update(vram_mb=100_000)
    services.request_placement(LARGE, "gateway-1", 2, fleet.clock(), lifetime_seconds=3600)
    fleet.settle(2)
    Alias.objects.create(name="local/small", profile=ModelProfile.objects.get(model_id=SMALL))
    return fleet


def press(client: Client, page: str, action: str, *rows: int) -> str:
    """Run a list page's action on rows; return the page that follows."""
    address = reverse(f"admin:fleet_{page}_changelist")
    data = {"action": action, "_selected_action": [str(row) for row in rows]}
    response = client.post(address, data, follow=True)
    assert response.status_code == 200
    return response.content.decode()


def test_each_list_and_each_row_has_a_page(busy_fleet: Driver, admin_client: Client) -> None:
    for page in PAGES:
        response = admin_client.get(reverse(f"admin:fleet_{page}_changelist"))
        assert response.status_code == 200, page
        text = response.content.decode()
        assert "org/" in text or BEAST in text, page
        row = apps.get_model("fleet", page).objects.order_by("pk").first()
        assert row is not None, page
        address = reverse(f"admin:fleet_{page}_change", args=[row.pk])
        assert admin_client.get(address).status_code == 200, page


@pytest.mark.parametrize("page", ["neuron", "modelprofile", "alias"])
def test_what_an_operator_adds_has_a_form(page: str, admin_client: Client) -> None:
    assert admin_client.get(reverse(f"admin:fleet_{page}_add")).status_code == 200


@pytest.mark.parametrize("page", ["placement", "fleetevent", "demand"])
def test_what_the_control_plane_writes_cannot_be_added(page: str, admin_client: Client) -> None:
    assert admin_client.get(reverse(f"admin:fleet_{page}_add")).status_code == 403


def test_nobody_writes_a_placements_row(busy_fleet: Driver, admin_client: Client) -> None:
    placement = placements(SMALL)[0]
    address = reverse("admin:fleet_placement_change", args=[placement.pk])
    assert admin_client.post(address, {}).status_code == 403
    assert admin_client.get(address).status_code == 200


def test_a_neurons_devices_and_models_are_on_its_page(
    busy_fleet: Driver, admin_client: Client
) -> None:
    address = reverse("admin:fleet_neuron_change", args=[neuron_row(BEAST).pk])
    text = admin_client.get(address).content.decode()
    assert "Fake device 1" in text
    assert SMALL in text
    assert "7.8 GB" in text


def test_a_token_is_stored_and_never_shown(world: object, admin_client: Client) -> None:
    neuron = neuron_row(BEAST)
    address = reverse("admin:fleet_neuron_change", args=[neuron.pk])
    inlines = _no_inline_rows("devices", "placements")
    data = {"endpoint": neuron.endpoint, "token": "s3cret-token", **inlines}
    response = admin_client.post(address, data, follow=True)
    assert "s3cret-token" not in response.content.decode()
    stored = neuron_row(BEAST).token_encrypted
    assert stored is not None
    assert b"s3cret-token" not in bytes(stored)
    assert decrypt_token(stored) == "s3cret-token"
    assert "s3cret-token" not in admin_client.get(address).content.decode()
    admin_client.post(address, {"endpoint": neuron.endpoint, "token": "", **inlines})
    assert decrypt_token(neuron_row(BEAST).token_encrypted) == "s3cret-token"
    admin_client.post(address, {"endpoint": neuron.endpoint, "remove_token": "on", **inlines})
    assert neuron_row(BEAST).token_encrypted is None


def test_a_neuron_moved_to_another_host_loses_its_token_and_says_so(
    world: object, admin_client: Client
) -> None:
    neuron = neuron_row(BEAST)
    services.set_neuron_token(neuron.pk, "s3cret", timezone.now())
    address = reverse("admin:fleet_neuron_change", args=[neuron.pk])
    inlines = _no_inline_rows("devices", "placements")
    data = {"endpoint": "http://first.internal:1", "token": "new", **inlines}
    assert "token was removed" not in admin_client.post(address, data, follow=True).content.decode()
    assert decrypt_token(neuron_row(BEAST).token_encrypted) == "new"
    data = {"endpoint": "http://second.internal:1", "token": "", **inlines}
    assert "token was removed" in admin_client.post(address, data, follow=True).content.decode()
    assert neuron_row(BEAST).token_encrypted is None


def test_a_neuron_and_a_model_can_be_added(db: None, admin_client: Client) -> None:
    data = {"name": "third", "endpoint": "http://127.0.0.1:1/", "token": "abc"}
    data |= _no_inline_rows("devices", "placements")
    assert admin_client.post(reverse("admin:fleet_neuron_add"), data).status_code == 302
    assert neuron_row("third").endpoint == "http://127.0.0.1:1"
    assert decrypt_token(neuron_row("third").token_encrypted) == "abc"
    form = {
        "model_id": "org/new",
        "harness": "torch",
        "enabled": "on",
        "min_devices": "1",
        "min_device_vram_mb": "0",
        "residency_priority": "300",
        "min_placements": "0",
        "pinned_on": [str(neuron_row("third").pk)],
        **_no_inline_rows("placements"),
    }
    response = admin_client.post(reverse("admin:fleet_modelprofile_add"), form)
    assert response.status_code == 302
    profile = ModelProfile.objects.get(model_id="org/new")
    assert profile.residency_priority == 300
    assert [neuron.name for neuron in profile.pinned_on.all()] == ["third"]


def test_an_alias_may_not_hide_a_model(world: object, admin_client: Client) -> None:
    profile = ModelProfile.objects.get(model_id=SMALL)
    add = reverse("admin:fleet_alias_add")
    admin_client.post(add, {"name": LARGE, "profile": profile.pk})
    assert not Alias.objects.exists()
    admin_client.post(add, {"name": "nick", "profile": profile.pk})
    assert Alias.objects.get().profile == profile


def test_buttons_of_neurons_reach_the_services(world: object, admin_client: Client) -> None:
    neuron = neuron_row(BEAST)
    for button, column, value in (
        ("disable", "enabled", False),
        ("enable", "enabled", True),
        ("cordon", "cordoned", True),
        ("drain", "draining", True),
        ("uncordon", "draining", False),
    ):
        press(admin_client, "neuron", button, neuron.pk)
        assert getattr(neuron_row(BEAST), column) is value
    assert "Nothing to do" in press(admin_client, "neuron", "enable", neuron.pk)


def test_load_and_unload_of_models(fleet: Driver, admin_client: Client) -> None:
    profile = ModelProfile.objects.get(model_id=SMALL)
    press(admin_client, "modelprofile", "load", profile.pk)
    assert Demand.objects.get().source == "operator"
    Demand.objects.update(expires_at=fleet.clock.advance(600))
    fleet.clock.advance(-600)
    fleet.until(lambda: live(SMALL) == [(BEAST, "ready")])
    press(admin_client, "placement", "unload", placements(SMALL)[0].pk)
    assert placements(SMALL)[0].desired == Desired.ABSENT
    fleet.until(lambda: live(SMALL) == [])
    assert "Nothing to do" in press(admin_client, "modelprofile", "unload", profile.pk)


def test_a_neuron_with_models_cannot_be_deleted(busy_fleet: Driver, admin_client: Client) -> None:
    beast, puny = neuron_row(BEAST), neuron_row(PUNY)
    admin_client.post(reverse("admin:fleet_neuron_delete", args=[beast.pk]), {"post": "yes"})
    assert Neuron.objects.filter(pk=beast.pk).exists()
    admin_client.post(reverse("admin:fleet_neuron_delete", args=[puny.pk]), {"post": "yes"})
    assert not Neuron.objects.filter(pk=puny.pk).exists()


def test_lists_cost_the_same_queries_for_more_rows(
    busy_fleet: Driver, admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    for number in range(20):
        ModelProfile.objects.create(model_id=f"org/{number}")
        Neuron.objects.create(name=f"n{number}", endpoint="http://127.0.0.1:1")
    for page in PAGES:
        with django_assert_max_num_queries(14):
            admin_client.get(reverse(f"admin:fleet_{page}_changelist"))


def test_somebody_without_rights_sees_nothing(world: object, client: Client) -> None:
    response = client.get(reverse("admin:fleet_neuron_changelist"))
    assert response.status_code == 302
    assert "/login/" in response["Location"]


def _no_inline_rows(*prefixes: str) -> dict[str, str]:
    return {
        f"{prefix}-{name}": "0" for prefix in prefixes for name in ("TOTAL_FORMS", "INITIAL_FORMS")
    }
