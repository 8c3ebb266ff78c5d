"""Texts of models that are not loaded: from where they are, once, and no more of them than may be.

In the tests a text is known by what object it is: one that was read anew is another.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from neuron_agent import text_library
from neuron_agent.config import RegistryConfig
from neuron_agent.errors import NotFound, Unprocessable
from neuron_agent.protocol import LoadRequest
from neuron_agent.sources.model_text import ModelText, read_model_text
from neuron_agent.sources.repository import list_cached_models
from neuron_agent.text_library import MAX_KEPT, TextLibrary
from tests.fakes.hub import FakeHub
from tests.neuron_agent.tiny_model import write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


@pytest.fixture
def hub(folder: Path) -> Iterator[FakeHub]:
    with FakeHub({"org/tiny": folder}) as running:
        yield running


@pytest.fixture
async def library(tmp_path: Path, hub: FakeHub) -> AsyncIterator[TextLibrary]:
    """Yield one that knows a registry `here`."""
    opened = new_library(tmp_path, hub.url)
    yield opened
    await opened.close()


def new_library(tmp_path: Path, url: str) -> TextLibrary:
    registry = RegistryConfig(url, cache=str(tmp_path / "cache"))
    return TextLibrary(str(tmp_path / "hub"), {"here": registry})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return what is read from here on."""
    paths: list[Path] = []

    def read(path: Path) -> ModelText:
        paths.append(path)
        return read_model_text(path)

    monkeypatch.setattr(text_library, "read_model_text", read)
    return paths


def at(folder: Path, model_id: str = "org/tiny") -> LoadRequest:
    return LoadRequest(model_id, source=str(folder))


REMOTE = LoadRequest("org/tiny", source="here:org/tiny")


async def test_text_is_read_once_however_many_ask(
    library: TextLibrary, folder: Path, reads: list[Path]
) -> None:
    texts = await asyncio.gather(*(library.text_of(at(folder)) for _ in range(8)))
    texts.append(await library.text_of(replace(at(folder), dtype="float32", wait=True)))
    assert {id(text) for text in texts} == {id(texts[0])}
    assert reads == [folder]


async def test_asker_that_leaves_does_not_take_the_text_from_the_others(
    library: TextLibrary, folder: Path, reads: list[Path]
) -> None:
    first, second = (asyncio.create_task(library.text_of(at(folder))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).encode("hi")
    assert reads == [folder]


async def test_texts_used_last_are_kept(
    library: TextLibrary, folder: Path, reads: list[Path]
) -> None:
    wanted = [at(folder, f"model-{number}") for number in range(MAX_KEPT + 1)]
    for request in wanted[:-1]:
        await library.text_of(request)
    await library.text_of(wanted[0])
    await library.text_of(wanted[-1])  # the second one has to go for it
    num_reads = len(reads)
    await library.text_of(wanted[0])
    assert len(reads) == num_reads
    await library.text_of(wanted[1])
    assert len(reads) == num_reads + 1


async def test_model_that_left_is_known_by_its_id_alone(library: TextLibrary, folder: Path) -> None:
    text = read_model_text(folder)
    library.keep(replace(at(folder), quant="int8", devices=(0,)), text)
    assert await library.text_of(LoadRequest("org/tiny")) is text
    assert await library.text_of(replace(at(folder), quant="int8")) is text
    assert await library.text_of(at(folder)) is not text


async def test_text_needs_no_weights(library: TextLibrary, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert (await library.text_of(at(folder))).template is not None


async def test_text_of_a_repository_is_fetched_without_weights(
    library: TextLibrary, hub: FakeHub, folder: Path, tmp_path: Path
) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    text = await library.text_of(REMOTE)
    assert text.encode("hi") == read_model_text(folder).encode("hi")
    assert text.template == read_model_text(folder).template
    names = {name for name, _ in hub.downloads}
    assert {"tokenizer.json", "chat_template.jinja"} <= names
    assert not any("safetensors" in name for name in names)
    assert list_cached_models(str(tmp_path / "cache")) == (), "a text is no model"


async def test_what_is_in_the_cache_is_not_asked_for_again(
    library: TextLibrary, hub: FakeHub, tmp_path: Path
) -> None:
    await library.text_of(REMOTE)
    num_downloads = len(hub.downloads)
    hub.repositories.clear()
    another = new_library(tmp_path, hub.url)
    assert (await another.text_of(REMOTE)).template is not None
    assert len(hub.downloads) == num_downloads
    await another.close()


def make_gguf_alone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "m-Q8_0.gguf").write_bytes(b"x")
    (folder / "config.json").write_text("{}")


async def test_gguf_that_is_elsewhere_is_not_fetched(
    library: TextLibrary, hub: FakeHub, folder: Path
) -> None:
    make_gguf_alone(folder)
    with pytest.raises(Unprocessable) as caught:
        await library.text_of(REMOTE)
    assert caught.value.code == "repo_fetch_failed"
    assert "m-Q8_0.gguf" not in {name for name, _ in hub.downloads}


async def test_failure_is_not_kept(library: TextLibrary, folder: Path, tmp_path: Path) -> None:
    later = at(tmp_path / "later")
    with pytest.raises(Unprocessable) as caught:
        await library.text_of(later)
    assert caught.value.code == "repo_fetch_failed"
    shutil.copytree(folder, tmp_path / "later")
    assert (await library.text_of(later)).encode("hi")


@pytest.mark.parametrize("model_id", ["not a repository", "org/unknown", "/etc", "../up", "a\0b"])
async def test_model_that_is_nowhere_is_not_found(
    library: TextLibrary, monkeypatch: pytest.MonkeyPatch, model_id: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound) as caught:
        await library.text_of(LoadRequest(model_id))
    assert caught.value.code == "model_not_found"


async def test_repository_that_is_named_and_not_there_cannot_be_fetched(
    library: TextLibrary,
) -> None:
    with pytest.raises(Unprocessable) as caught:
        await library.text_of(replace(REMOTE, source="here:org/unknown"))
    assert caught.value.code == "repo_fetch_failed"
