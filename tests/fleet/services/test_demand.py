"""Wishes for models: one row a source, renewed, withdrawn, expired, answered."""

from datetime import timedelta

import pytest

from fleet import services
from fleet.models import Alias, Demand, FleetEvent, ModelProfile, Neuron
from fleet.planner.actions import Hold, Load, Refusal, RefusalCode, Refuse
from fleet.selectors import serving_view
from fleet.services.demand import record_verdict, settle_demands
from fleet.services.orders import begin_load
from tests.fleet.conftest import Notified
from tests.world import START

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


@pytest.fixture(autouse=True)
def catalogue(db: None) -> None:
    ModelProfile.objects.create(model_id="a")
    ModelProfile.objects.create(model_id="b")


def test_however_many_wait_there_is_one_row_a_source() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    services.request_placement("a", "gateway-1", 7, START + SECOND)
    services.request_placement("a", "gateway-2", 2, START)
    rows = Demand.objects.order_by("source").values_list("source", "num_waiting", "since")
    assert list(rows) == [("gateway-1", 7, START), ("gateway-2", 2, START)]


def test_a_wish_asks_for_a_pass(notified: Notified, django_capture_on_commit_callbacks) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        services.request_placement("a", "gateway-1", 1, START)
    assert notified.wishes == 1


def test_an_expired_wish_that_is_made_again_begins_anew() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    Demand.objects.update(verdict={"kind": "hold", "refusals": []})
    later = START + 60 * SECOND
    services.request_placement("a", "gateway-1", 1, later)
    row = Demand.objects.get()
    assert (row.since, row.verdict) == (later, None)


def test_renewing_prolongs_keeps_the_verdict_and_leaves_others_alone() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    services.request_placement("b", "gateway-1", 1, START)
    Demand.objects.update(verdict={"kind": "hold", "refusals": []})
    services.renew_demand("gateway-1", {"a": 5}, START + 2 * SECOND)
    renewed = Demand.objects.get(profile__model_id="a")
    assert (renewed.num_waiting, renewed.since) == (5, START)
    assert renewed.expires_at == START + 12 * SECOND
    assert renewed.verdict is not None
    assert Demand.objects.get(profile__model_id="b").expires_at == START + 10 * SECOND


def test_renewing_what_was_deleted_makes_it_again() -> None:
    services.renew_demand("gateway-1", {"a": 3}, START)
    assert Demand.objects.get().num_waiting == 3


def test_withdrawing_takes_one_sources_row() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    services.request_placement("a", "gateway-2", 1, START)
    services.withdraw_demand("a", "gateway-1")
    services.withdraw_demand("a", "gateway-1")
    assert Demand.objects.get().source == "gateway-2"


def test_unknown_models_and_neurons_are_errors() -> None:
    with pytest.raises(services.UnknownModel):
        services.request_placement("c", "gateway-1", 1, START)
    with pytest.raises(services.UnknownNeuron):
        services.request_placement("a", "gateway-1", 1, START, on_neuron=77)
    assert not Demand.objects.exists()


def test_an_alias_means_its_model() -> None:
    Alias.objects.create(name="nick", profile=ModelProfile.objects.get(model_id="a"))
    services.request_load("nick", None, START, "owner")
    assert Demand.objects.get().profile.model_id == "a"


def refusal(detail: str, code: RefusalCode = RefusalCode.BUSY_VICTIMS) -> Refusal:
    return Refusal("beast", code, detail)


def test_a_verdict_is_written_once_and_told_when_its_codes_change() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    assert record_verdict(Hold("a", (refusal("1 MB"),)), START)
    assert not record_verdict(Hold("a", (refusal("1 MB"),)), START)
    assert FleetEvent.objects.count() == 1
    assert record_verdict(Hold("a", (refusal("2 MB"),)), START)
    assert FleetEvent.objects.count() == 1
    assert record_verdict(Refuse("a", (refusal("", RefusalCode.CORDONED),)), START)
    assert FleetEvent.objects.count() == 2
    verdict = Demand.objects.get().verdict
    assert verdict == {
        "kind": "refuse",
        "refusals": [{"neuron": "beast", "code": "cordoned", "detail": ""}],
    }


def test_what_an_operator_is_told_of_one_neuron_concerns_nobody_else() -> None:
    beast = Neuron.objects.create(name="beast", endpoint="http://beast:13131")
    services.request_load("a", "beast", START, "owner")
    services.request_placement("a", "gateway-1", 1, START)
    for_all = Hold("a", (refusal("1 MB"),))
    for_one = Refuse("a", (refusal("", RefusalCode.CORDONED),), beast.pk)
    num_events = FleetEvent.objects.count()
    assert record_verdict(for_all, START)
    assert record_verdict(for_one, START)
    assert FleetEvent.objects.count() == num_events + 2
    assert not record_verdict(for_all, START)
    assert not record_verdict(for_one, START)
    told = {demand.source: demand.verdict["kind"] for demand in Demand.objects.all()}
    assert told == {f"operator@{beast.pk}": "refuse", "gateway-1": "hold"}
    assert serving_view(START).verdicts["a"].kind == "hold"
    services.withdraw_demand("a", "gateway-1")
    assert "a" not in serving_view(START).verdicts


def test_an_operators_load_elsewhere_takes_no_answer_away_from_others() -> None:
    beast, puny = (
        Neuron.objects.create(name=name, endpoint=f"http://{name}:13131")
        for name in ("beast", "puny")
    )
    services.request_load("a", "beast", START, "owner")
    services.request_placement("a", "gateway-1", 1, START)
    Demand.objects.update(verdict={"kind": "hold", "refusals": []})
    assert begin_load(Load("a", puny.pk, (0,), 1, "declared", "1 waiting"), START)
    answered = Demand.objects.exclude(verdict=None)
    assert [demand.on_neuron for demand in answered] == [beast]


def test_a_wish_with_a_neuron_still_to_come_is_not_given_up_for_another_that_failed() -> None:
    services.request_load("a", None, START, "owner")
    failed = Refusal("beast", RefusalCode.COOLING_DOWN)
    record_verdict(Hold("a", (failed, Refusal("puny", RefusalCode.MEMORY_ON_ITS_WAY))), START)
    settle_demands(START)
    assert Demand.objects.exists()
    record_verdict(Hold("a", (failed, Refusal("puny", RefusalCode.CORDONED))), START)
    settle_demands(START)
    assert not Demand.objects.exists()


def test_a_verdict_on_what_nobody_waits_for_is_no_news() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    assert not record_verdict(Hold("a", (refusal(""),)), START + 11 * SECOND)
    assert not record_verdict(Hold("b", (refusal(""),)), START)


def test_what_expired_is_deleted() -> None:
    services.request_placement("a", "gateway-1", 1, START)
    settle_demands(START + 9 * SECOND)
    assert Demand.objects.exists()
    settle_demands(START + 10 * SECOND)
    assert not Demand.objects.exists()


def test_an_operator_may_want_a_model_on_two_neurons() -> None:
    for name in ("beast", "puny"):
        Neuron.objects.create(name=name, endpoint=f"http://{name}:13131")
        services.request_load("a", name, START, "owner")
    assert Demand.objects.count() == 2
    assert services.request_unload("a", "beast", START) == 0
    assert [demand.on_neuron.name for demand in Demand.objects.all()] == ["puny"]
