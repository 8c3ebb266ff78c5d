"""What is read from a model folder, in the shapes folders come in."""

import json
import threading
from pathlib import Path

import pytest

from neuron_agent.errors import Unprocessable
from neuron_agent.model_text import SamplingDefaults, read_model_text
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer, write_model

END_ID = build_tokenizer().token_to_id("<|im_end|>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


def set_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(fields))


def test_ordinary_folder(folder: Path) -> None:
    text = read_model_text(folder)
    assert text.stop_ids == (END_ID,)
    assert text.defaults == SamplingDefaults(temperature=0.6, top_k=20)
    assert text.template is not None
    assert text.template.source == TEMPLATE
    assert text.template.special_tokens == {"eos_token": "<|im_end|>"}


def test_long_text_is_encoded_without_stopping_the_other_threads(folder: Path) -> None:
    """Another thread counts; while one text is encoded, it must get its turns."""
    text, has_ended = read_model_text(folder), threading.Event()
    turns: list[int] = []
    long = "one two three " * 50_000

    def take_turns() -> None:
        while not has_ended.wait(0.001):
            turns.append(len(turns))

    encoded = build_tokenizer().encode(long, add_special_tokens=False).ids
    other = threading.Thread(target=take_turns)
    other.start()
    try:
        assert text.encode(long) == encoded
    finally:
        has_ended.set()
        other.join()
    assert len(turns) > 10


def test_every_token_that_ends_a_text_counts(folder: Path) -> None:
    set_json(folder / "generation_config.json", eos_token_id=[5, 7])
    assert read_model_text(folder).stop_ids == tuple(sorted({5, 7, END_ID}))


def test_template_may_stand_in_the_tokenizer_config(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    set_json(folder / "tokenizer_config.json", chat_template="one")
    assert template_of(folder) == "one"
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    set_json(folder / "tokenizer_config.json", chat_template=several)
    assert template_of(folder) == "b"
    set_json(folder / "tokenizer_config.json", eos_token={"content": "<|im_end|>"})
    assert template_of(folder) is None


def template_of(folder: Path) -> str | None:
    template = read_model_text(folder).template
    return template.source if template else None


def test_model_that_does_not_sample_is_greedy(folder: Path) -> None:
    set_json(folder / "generation_config.json", do_sample=False, temperature=0.7)
    assert read_model_text(folder).defaults.temperature == 0.0


def test_top_k_of_minus_one_is_off(folder: Path) -> None:
    set_json(folder / "generation_config.json", top_k=-1)
    assert read_model_text(folder).defaults.top_k == 0


def test_folder_without_generation_config_samples_plainly(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert read_model_text(folder).defaults == SamplingDefaults(1.0, 1.0, 0)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_file_that_cannot_be_read_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{broken")
    with pytest.raises(Unprocessable, match=file) as caught:
        read_model_text(folder)
    assert caught.value.code == "load_failed"
    assert str(folder) not in caught.value.message
