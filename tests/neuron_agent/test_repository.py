"""Where a model's files come from: folders, a hub, and the ways both can fail."""

from pathlib import Path

import pytest

from neuron_agent import repository
from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import LoadRequest
from tests.fakes.fake_device import REPLY
from tests.fakes.hub import FakeHub
from tests.neuron_agent.front import Front
from tests.neuron_agent.tiny_model import write_model

pytestmark = pytest.mark.slow


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    found = repository.find_folder(LoadRequest("m", source=str(folder)), None, print)
    assert found == folder
    assert repository.weight_bytes(folder) == 64


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_folder_with_half_a_model_is_empty(tmp_path: Path, missing: str) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / missing).unlink()
    with pytest.raises(Unprocessable) as caught:
        repository.find_folder(LoadRequest("m", source=str(folder)), None, print)
    assert caught.value.code == "empty_repo"


@pytest.mark.parametrize("source", ["/nowhere", "../up", "a b", "a/b/c", "~root/x"])
def test_source_that_is_nowhere_cannot_be_fetched(source: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        repository.find_folder(LoadRequest("m", source=source), None, print)
    assert caught.value.code == "repo_fetch_failed"


def test_host_without_a_cache_has_no_cached_models(tmp_path: Path) -> None:
    assert repository.list_cached_models(str(tmp_path / "absent")) == ()


def test_model_of_a_hub_is_fetched_once_and_served(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"\0" * 3_000_000)
    settings = {"HF_CACHE": str(tmp_path / "cache")}
    with FakeHub({"org/tiny": folder}) as hub, Front(settings, {"HF_ENDPOINT": hub.url}) as front:
        assert front.ask("POST", "/models/load", {"model_id": "org/tiny"}).status == 202
        events = front.ask("GET", "/models/org/tiny/events").body.decode()
        assert '"stage":"fetching"' in events
        assert '"bytes_total":3' in events
        assert "event: ready" in events
        assert front.chat().text == REPLY
        (cached,) = front.get("/discovery")["cached_models"]
        assert cached["id"] == "org/tiny"
        assert cached["bytes"] > 3_000_000
        unknown = front.load(folder, "other", source="org/unknown")
        assert (unknown.status, unknown.error["code"]) == (422, "repo_fetch_failed")
        assert hub.url.encode() not in unknown.body
    with Front(settings, {"HF_HUB_OFFLINE": "1"}) as front:
        assert front.load(folder, "org/tiny", source=None).status == 200
        assert front.load(folder, "other", source="org/unknown").status == 422
