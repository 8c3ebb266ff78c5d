"""What is read from a model folder, in the shapes folders come in."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neuron_agent.errors import Unprocessable
from neuron_agent.sources.model_text import SamplingDefaults, read_model_text
from tests.neuron_agent.sources.gguf_models import write_gguf
from tests.neuron_agent.tiny_model import TEMPLATE, build_tokenizer, write_model
from tests.neuron_agent.tiny_models import build_tiny

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
    set_json(folder / "tokenizer_config.json", chat_template=["odd", {"name": ["x"]}])
    assert template_of(folder) is None
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


def test_template_in_another_encoding_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(Unprocessable, match=r"chat_template\.jinja"):
        read_model_text(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_file_that_cannot_be_read_is_named(folder: Path, file: str) -> None:
    (folder / file).write_text("{broken")
    with pytest.raises(Unprocessable, match=file) as caught:
        read_model_text(folder)
    assert caught.value.code == "load_failed"
    assert str(folder) not in caught.value.message


# --- GGUF ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the text side of the ordinary folder, its weights those of another model."""
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "m.gguf",
        build_tiny("qwen3"),
        tokenizer=build_tokenizer(),
        template=TEMPLATE,
        end_id=END_ID,
    )


def test_gguf_has_the_text_side_of_its_folder(folder: Path, gguf_file: Path) -> None:
    ours, theirs = read_model_text(gguf_file), read_model_text(folder)
    assert set(theirs.stop_ids) <= set(ours.stop_ids)
    assert ours.template == theirs.template
    assert ours.format.reasoning == theirs.format.reasoning
    assert ours.format.tools == theirs.format.tools
    rendered = (
        ours.template.render([{"role": "user", "content": "é 日本 🎉"}]) if ours.template else ""
    )
    assert "日本" in rendered
    assert ours.encode(rendered) == theirs.encode(rendered)


def test_tokenizer_beside_a_gguf_goes_first(folder: Path, gguf_file: Path) -> None:
    beside = folder / "m.gguf"
    beside.write_bytes(gguf_file.read_bytes())
    assert read_model_text(beside).stop_ids == read_model_text(folder).stop_ids
    assert read_model_text(beside).defaults == read_model_text(folder).defaults


def test_header_tells_what_the_files_beside_a_gguf_do_not(folder: Path, gguf_file: Path) -> None:
    """Somebody put nothing but a tokenizer.json there."""
    (folder / "only").mkdir()
    (folder / "only" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (folder / "only" / "m.gguf").write_bytes(gguf_file.read_bytes())
    text = read_model_text(folder / "only" / "m.gguf")
    assert text.template == read_model_text(folder).template
    assert END_ID in text.stop_ids


@pytest.mark.parametrize("content", [b"", b"GGUF", b"x" * 100])
def test_broken_gguf_has_no_text_side(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(Unprocessable) as caught:
        read_model_text(tmp_path / "m.gguf")
    assert caught.value.code == "load_failed"
    assert str(tmp_path) not in caught.value.message


def test_gguf_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", build_tiny("qwen3"))
    with pytest.raises(Unprocessable, match="vocabulary"):
        read_model_text(path)


@pytest.mark.slow
def test_text_side_of_a_gguf_needs_no_torch(gguf_file: Path) -> None:
    """What the front pays: no library that computes tensors is loaded."""
    code = (
        "import sys, pathlib; from neuron_agent.sources.model_text import read_model_text;"
        "read_model_text(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(gguf_file)], check=False).returncode == 0


def test_min_p_and_repetition_penalty_are_the_models_own(folder: Path) -> None:
    set_json(folder / "generation_config.json", min_p=0.1, repetition_penalty=1.1)
    defaults = read_model_text(folder).defaults
    assert (defaults.min_p, defaults.repetition_penalty) == (0.1, 1.1)
