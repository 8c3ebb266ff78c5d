"""Where a model's files come from: folders, a hub, and the ways both can fail."""

from dataclasses import replace
from pathlib import Path

import pytest

from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import LoadRequest
from neuron_agent.sources import repository
from tests.fakes.fake_device import REPLY
from tests.fakes.hub import FakeHub
from tests.neuron_agent.front import Front
from tests.neuron_agent.sources.gguf_models import write_gguf
from tests.neuron_agent.tiny_model import write_model
from tests.neuron_agent.tiny_models import build_tiny

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


@pytest.mark.parametrize(
    "source",
    ["/nowhere", f"/{'a' * 5000}", "/a\0b", "../up", "a b", "a/b/c", "~root/x", "a" * 5000, "a\0b"],
)
def test_source_that_is_nowhere_cannot_be_fetched(source: str) -> None:
    with pytest.raises(Unprocessable) as caught:
        repository.find_folder(LoadRequest("m", source=source), None, print)
    assert caught.value.code == "repo_fetch_failed"


def test_gguf_file_is_a_model_by_itself(tmp_path: Path) -> None:
    files = [tmp_path / f"m-Q8_0-{n:05d}-of-00002.gguf" for n in (1, 2)]
    for file in files:
        file.write_bytes(b"x" * 10)
    for source in (tmp_path, *files):
        request = LoadRequest("m", source=str(source))
        assert repository.find_folder(request, None, print) == files[0]
        assert repository.find_folder(replace(request, quant="q8_0"), None, print) == files[0]
        assert repository.find_folder(replace(request, quant="int8"), None, print) == files[0]
    assert repository.weight_bytes(files[0]) == 20


def test_quantisation_that_is_not_there_is_refused_with_what_is(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    (folder / "m-Q4_0.gguf").write_bytes(b"x")
    for source, hint in ((folder, "there is Q4_0, int8"), (folder / "m-Q4_0.gguf", "Q4_0")):
        request = LoadRequest("m", source=str(source), quant="Q5_0")
        with pytest.raises(Unprocessable) as caught:
            repository.find_folder(request, None, print)
        assert caught.value.code == "quant_not_found"
        assert hint in str(caught.value.hint)
    chosen = repository.find_folder(LoadRequest("m", source=str(folder), quant="Q4_0"), None, print)
    assert chosen.name == "m-Q4_0.gguf"


def test_header_tells_what_a_name_does_not(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "ggml-model.gguf", build_tiny("qwen3"), "Q8_0")
    request = LoadRequest("m", source=str(path), quant="Q8_0")
    assert repository.find_folder(request, None, print) == path
    with pytest.raises(Unprocessable):
        repository.find_folder(replace(request, quant="Q4_0"), None, print)


def test_a_part_of_none_is_a_file_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "m-00001-of-00000.gguf"
    path.write_bytes(b"x")
    for source in (path, tmp_path):
        assert repository.find_folder(LoadRequest("m", source=str(source)), None, print) == path


def test_parts_in_a_folder_of_their_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "BF16").mkdir()
    for number in (1, 2):
        (tmp_path / "BF16" / f"m-BF16-{number:05d}-of-00002.gguf").write_bytes(b"x")
    found = repository.find_folder(LoadRequest("m", source=str(tmp_path)), None, print)
    assert found.parent.name == "BF16"


# --- texts ---------------------------------------------------------------------------------------


def find_text(source: Path, quant: str | None = None) -> Path | None:
    return repository.find_text(LoadRequest("m", source=str(source), quant=quant), None, {})


def test_text_of_a_folder_needs_no_weights(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "tiny")
    assert find_text(folder) == folder
    (folder / "model.safetensors").unlink()
    assert find_text(folder, "Q8_0") == folder


def test_text_is_read_from_the_file_that_would_be_loaded(tmp_path: Path) -> None:
    files = [tmp_path / f"m-{quant}.gguf" for quant in ("Q4_0", "Q8_0")]
    for file in files:
        file.write_bytes(b"x")
    assert [find_text(tmp_path, quant) for quant in ("Q4_0", "Q8_0", "int8", None)] == [
        files[0],
        files[1],
        files[1],
        files[1],
    ]
    assert find_text(tmp_path, "Q5_0") == files[1], "the tokenizer is the same in all of them"
    assert find_text(files[0], "Q8_0") == files[0]


def test_repository_that_was_never_fetched_has_no_text_here(tmp_path: Path) -> None:
    wanted = LoadRequest("m", source="org/tiny")
    assert repository.find_text(wanted, str(tmp_path), {}) is None


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
