"""The page of request records: shown, searched, never changed."""

import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from inference.models import RequestRecord

pytestmark = pytest.mark.django_db
PAGE = "/admin/inference/requestrecord/"


@pytest.fixture
def operator() -> Client:
    user = get_user_model().objects.create_superuser("owner", password="x")
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def record() -> RequestRecord:
    return RequestRecord.objects.create(
        request_id="req-1",
        at="2026-01-01T00:00:00Z",
        model="org/m",
        requested_model="alias-of-m",
        dialect="chat",
        status=200,
        ttft_seconds=0.25,
        latency_seconds=3.5,
        tokens_per_second=41.26,
    )


def test_records_are_listed_with_speed_and_times(operator: Client, record: RequestRecord) -> None:
    page = operator.get(PAGE, {"q": "req-1"})
    assert page.status_code == 200
    for text in ("alias-of-m", "250\N{NO-BREAK SPACE}ms", "3.50\N{NO-BREAK SPACE}s", "41.3"):
        assert text in page.content.decode()
    assert operator.get(PAGE, {"q": "req-2"}).content.decode().find("alias-of-m") == -1


def test_a_record_can_be_looked_at_and_not_changed(operator: Client, record: RequestRecord) -> None:
    page = f"{PAGE}{record.pk}/change/"
    assert operator.get(page).status_code == 200
    assert operator.post(page, {"status": 500}).status_code == 403
    assert operator.get(f"{PAGE}add/").status_code == 403
    assert operator.post(f"{PAGE}{record.pk}/delete/", {"post": "yes"}).status_code == 403
