"""Registries: whose address, token and cache; what is fetched, and how that can fail."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from neuron_agent.config import RegistryConfig
from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import LoadProgress
from neuron_agent.sources import hub as registry
from neuron_agent.sources.hub import Repository, fetch, find_repository
from tests.fakes.hub import FakeHub
from tests.neuron_agent.tiny_model import write_model

CONFIGURED = {
    "ours": RegistryConfig("https://models.example:8443/", token="secret", cache="/models"),
    "open": RegistryConfig("http://127.0.0.1:1"),
}


def find(source: str) -> Repository:
    return find_repository(source, "main", "/cache", CONFIGURED)


def test_plain_name_means_the_hub() -> None:
    assert find("org/tiny") == Repository("org/tiny", "main", cache_folder="/cache")


def test_each_registry_has_its_address_token_and_cache() -> None:
    ours = Repository("o/m", "main", "https://models.example:8443", "secret", "/models")
    assert find("ours:o/m") == ours
    assert find("registry://models.example:8443/o/m") == ours, "the same by its address"


@pytest.mark.parametrize("source", ["open:o/m", "registry://elsewhere.example/o/m"])
def test_the_hubs_token_goes_to_no_other_registry(source: str) -> None:
    repository = find(source)
    assert repository.token is False
    assert str(repository.cache_folder).startswith("/cache/registries/")


def test_registry_nobody_configured_is_named_with_those_there_are() -> None:
    with pytest.raises(Unprocessable) as caught:
        find("theirs:o/m")
    assert caught.value.hint == "configured are: open, ours"


@pytest.mark.parametrize("source", ["registry://h", "registry://h/m", "registry://a b/o/m", "x:"])
def test_source_that_names_nothing_is_refused(source: str) -> None:
    with pytest.raises(Unprocessable):
        find(source)


# --- fetching ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.fixture
def server(folder: Path) -> Iterator[FakeHub]:
    with FakeHub({"org/tiny": folder}) as running:
        yield running


def at(server: FakeHub, tmp_path: Path, token: str | bool = False) -> Repository:
    return Repository("org/tiny", None, server.url, token, str(tmp_path / "cache"))


def ignore(_progress: LoadProgress) -> None:
    pass


def refusal_of(repository: Repository, quant: str | None = None) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        fetch(repository, quant, ignore)
    assert str(repository.cache_folder) not in caught.value.message
    assert str(repository.endpoint) not in caught.value.message
    return caught.value


def test_only_what_is_needed_is_fetched(server: FakeHub, folder: Path, tmp_path: Path) -> None:
    for name in ("m-Q8_0.gguf", "m-Q4_0.gguf", "pytorch_model.bin", "logo.png"):
        (folder / name).write_bytes(name.encode())
    fetched = fetch(at(server, tmp_path), "Q4_0", ignore)
    assert (fetched / "m-Q4_0.gguf").read_bytes() == b"m-Q4_0.gguf"
    names = {name for name, _ in server.downloads}
    assert "tokenizer.json" in names
    assert not names & {"m-Q8_0.gguf", "pytorch_model.bin", "logo.png", "model.safetensors"}
    fetch(at(server, tmp_path), None, ignore)
    assert ("model.safetensors", 0) in server.downloads
    assert len(server.downloads) == len(names) + 1, "what is there is not fetched again"


def test_token_opens_a_closed_registry(server: FakeHub, tmp_path: Path) -> None:
    server.token = "secret"
    assert refusal_of(at(server, tmp_path)).code == "repo_fetch_failed"
    assert server.tokens == {None}
    assert (fetch(at(server, tmp_path, "secret"), None, ignore) / "config.json").is_file()


def test_broken_download_goes_on_where_it_ended(
    server: FakeHub, folder: Path, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 100_000  # the library keeps ten megabytes at a time
    (folder / "model.safetensors").write_bytes(content)
    server.break_after_bytes = 1_000_000
    fetched = fetch(at(server, tmp_path), None, ignore)
    assert (fetched / "model.safetensors").read_bytes() == content
    starts = [start for name, start in server.downloads if name == "model.safetensors"]
    assert starts[0] == 0
    assert starts[-1] > 0


def test_bytes_are_told_as_they_come(server: FakeHub, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\1" * 2_000_000)
    told: list[LoadProgress] = []
    fetch(at(server, tmp_path), None, told.append)
    assert told[-1].bytes_done == told[-1].bytes_total
    assert told[-1].bytes_total > 2_000_000
    assert told[-1].percent == 50.0


def test_small_files_are_not_taken_for_the_whole(
    server: FakeHub, folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors").write_bytes(b"\1" * 2_000_000)
    told: list[LoadProgress] = []
    fetch(at(server, tmp_path), None, told.append)
    assert {progress.bytes_total for progress in told} == {told[-1].bytes_total}
    percents = [progress.percent for progress in told]
    assert percents == sorted(percents)
    assert percents[0] < 50.0


def test_cache_without_the_weights_is_no_model_while_the_registry_is_away(
    folder: Path, tmp_path: Path
) -> None:
    with FakeHub({"org/tiny": folder}) as server:
        repository = at(server, tmp_path)
        fetched = fetch(repository, None, ignore)
    assert "cannot be reached" in refusal_of(repository, "Q4_0").message
    (fetched / "model.safetensors").unlink()
    assert "cannot be reached" in refusal_of(repository).message


def test_cache_serves_while_the_registry_is_away(folder: Path, tmp_path: Path) -> None:
    with FakeHub({"org/tiny": folder}) as server:
        repository = at(server, tmp_path)
        fetched = fetch(repository, None, ignore)
    assert fetch(repository, None, ignore) == fetched
    shutil.rmtree(tmp_path / "cache")
    assert "cannot be reached" in refusal_of(repository).message


def test_repository_without_a_model_is_empty(server: FakeHub, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal_of(at(server, tmp_path)).code == "empty_repo"
    assert not server.downloads


def test_gguf_with_a_missing_part_is_not_fetched(
    server: FakeHub, folder: Path, tmp_path: Path
) -> None:
    (folder / "m-Q4_0-00001-of-00002.gguf").write_bytes(b"x")
    refusal = refusal_of(at(server, tmp_path), "Q4_0")
    assert "m-Q4_0-00002-of-00002.gguf" in refusal.message
    assert not server.downloads


def test_disk_too_small_is_seen_before_anything_is_fetched(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    refusal = refusal_of(at(server, tmp_path))
    assert refusal.code == "repo_fetch_failed"
    assert "10 free" in refusal.message
    assert not server.downloads


@pytest.mark.filterwarnings("ignore:Not enough free disk space")
def test_disk_has_room_for_the_rest_of_a_broken_download(
    server: FakeHub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").write_bytes(b"\1" * 2_000_000)
    blobs = tmp_path / "cache" / "models--org--tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "other.incomplete").write_bytes(b"\1" * 1_900_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    assert (fetch(at(server, tmp_path), None, ignore) / "config.json").is_file()


def test_disk_that_fills_up_meanwhile_is_named(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_about: object) -> Path:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")
        except OSError as error:
            raise RuntimeError("task failed") from error

    monkeypatch.setattr(registry, "_download", write)
    assert refusal_of(at(server, tmp_path)).message == "the disk of the neuron's cache is full"
