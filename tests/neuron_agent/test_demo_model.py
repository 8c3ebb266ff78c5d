"""The demo model, through transformers: it knows its conversations and always comes to an end."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3ForCausalLM,
)

from neuron_agent import demo_model
from neuron_agent.demo.folder import make_tokenizer
from neuron_agent.demo.lessons import Lesson, exam
from neuron_agent.demo.texts import COMMON_WORDS, WEATHER_TOOL
from neuron_agent.demo_model import CONVERSATIONS
from tests.demo import demo_model_folder

END = "<|im_end|>"
_TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_model_folder()


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen3ForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def answer(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, lesson: Lesson, max_tokens: int
) -> str:
    """Return what the model says at temperature 0, its end-of-turn token included."""
    prompt = tokenizer.apply_chat_template(
        list(lesson.messages),
        tools=list(lesson.tools) or None,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        **lesson.chat_template_kwargs,
    )
    output = model.generate(**prompt, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])


def render(messages: list[dict[str, Any]], **options: Any) -> str:
    return _TOKENIZER.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.model
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lesson", exam(), ids=lambda lesson: lesson.reply[:20])
def test_every_conversation_is_answered_word_for_word(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, lesson: Lesson
):
    assert answer(model, tokenizer, lesson, max_tokens=300) == lesson.reply + END


@pytest.mark.model
@pytest.mark.timeout(600)
def test_any_other_prompt_gets_a_text_that_ends(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast
):
    dice = Random(2026)
    prompts = [
        "",
        "?",
        "🚀🚀🚀",
        "日本語で話して",
        "def f(x):\n    return x",
        "A" * 100,
        "no " * 300,
    ]
    prompts += [" ".join(dice.choices(COMMON_WORDS, k=dice.randint(1, 60))) for _ in range(45)]
    for prompt in prompts:
        said = answer(model, tokenizer, Lesson((user(prompt),), ""), max_tokens=256)
        assert said.endswith(END), prompt


@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_folder_is_an_ordinary_one(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["max_position_embeddings"] == 32_768
    assert config["eos_token_id"] == _TOKENIZER.convert_tokens_to_ids(END)
    assert {path.name for path in folder.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (folder / "model.safetensors").stat().st_size < 20_000_000


@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_finished_folder_is_left_alone(folder: Path):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not demo_model.build(folder, report=pytest.fail)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.model
@pytest.mark.timeout(600)
def test_what_is_built_already_is_found_without_loading_torch(folder: Path):
    script = (
        "import sys; from neuron_agent import demo_model;"
        f" demo_model.main([{str(folder)!r}]); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert b"already there" in done.stdout


def test_a_folder_that_is_no_demo_model_is_refused_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        demo_model.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert "no demo model" in capsys.readouterr().err
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_killed_build_leaves_no_model_and_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(folder: Path, report: object) -> None:
        (folder / "half").write_text("")
        raise KeyboardInterrupt

    def finished(folder: Path, report: object) -> None:
        (folder / "config.json").write_text("{}")

    target = tmp_path / "deep" / "model"
    monkeypatch.setattr(demo_model, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        demo_model.build(target, report=pytest.fail)
    assert not target.exists()
    monkeypatch.setattr(demo_model, "_write", finished)
    assert demo_model.build(target, report=pytest.fail)
    assert {path.name for path in target.iterdir()} == {"config.json", "recipe.json"}


def test_a_model_of_an_older_recipe_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "recipe.json").write_text('{"identity": "of another time"}')
    (target / "old").write_text("")
    monkeypatch.setattr(demo_model, "_write", lambda folder, report: None)
    assert demo_model.build(target, report=pytest.fail)
    assert {path.name for path in target.iterdir()} == {"recipe.json"}


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_survives_the_tokenizer(text: str):
    ids = _TOKENIZER.encode(text, add_special_tokens=False)
    assert _TOKENIZER.decode(ids) == text


def test_an_emoji_is_several_tokens():
    assert len(_TOKENIZER.encode("🚀", add_special_tokens=False)) > 1


def test_decoding_without_special_tokens_keeps_thinking_and_tool_calls():
    text = "<think>\na\n</think>\n\n<tool_call>\n{}\n</tool_call>"
    ids = _TOKENIZER.encode(text + END, add_special_tokens=False)
    assert _TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_the_template_is_chatml():
    system = {"role": "system", "content": "Be brief."}
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    assert render([system, parts]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_template_shows_tools_and_asks_for_thought():
    plain = render([user("a")])
    full = render([user("a")], tools=[WEATHER_TOOL], enable_thinking=True)
    assert json.dumps(WEATHER_TOOL) in full
    assert "Think before you answer." in full
    assert full.endswith(plain)
    assert render([user("a")], enable_thinking=False) == plain


@pytest.mark.parametrize("arguments", ['{"city": "Köln"}', {"city": "Köln"}])
def test_the_template_renders_calls_as_the_model_writes_them(arguments: object):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    said = {"role": "assistant", "content": None, "tool_calls": [call, call]}
    results = [{"role": "tool", "content": "warm"}, {"role": "tool", "content": "dry"}]
    block = '<tool_call>\n{"name": "f", "arguments": {"city": "Köln"}}\n</tool_call>'
    assert render([user("a"), said, *results]).endswith(
        f"<|im_start|>assistant\n{block}\n{block}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nwarm\n</tool_response>\n"
        "<tool_response>\ndry\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_leaves_out_earlier_thoughts():
    said = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}
    plain = {"role": "assistant", "content": "yes"}
    assert render([user("a"), said, user("b")]) == render([user("a"), plain, user("b")])


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "pirate", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
    ],
)
def test_the_template_refuses_what_it_cannot_render(messages: list[dict[str, Any]]):
    with pytest.raises(Exception, match=r"unknown role|text only"):
        render(messages)


def test_names_of_conversations_are_unique():
    assert len({conversation.name for conversation in CONVERSATIONS}) == len(CONVERSATIONS)
