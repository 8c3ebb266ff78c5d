"""Tokens counted over HTTP: those of the same chat request, also of a model that is not loaded."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.fake_device import CONTEXT_TOKENS
from tests.fakes.hub import FakeHub
from tests.neuron_agent.front import Front, chat_body, wait_until
from tests.neuron_agent.tiny_model import TEMPLATE, write_model

pytestmark = pytest.mark.slow

TALKATIVE_TEMPLATE = f"{{{{ reasoning_effort }}}}{{{{ extra }}}}{TEMPLATE}"
"""It shows whatever arguments a request has for it."""

WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "🙂"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "system", "content": "Be polite."},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
REQUESTS: list[dict[str, Any]] = [
    {"messages": MESSAGES},
    {"messages": MESSAGES, "tools": [WEATHER]},
    {"messages": MESSAGES, "tools": [WEATHER], "tool_choice": "none"},
    {"messages": MESSAGES, "tools": [WEATHER], "tool_choice": "required"},
    {"messages": MESSAGES, "tools": [WEATHER], "tool_choice": NAMED},
    {"messages": MESSAGES, "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": MESSAGES, "chat_template_kwargs": {"extra": "word " * 9}},
    {"messages": MESSAGES, "reasoning_effort": "high"},
    {"messages": MESSAGES, "max_tokens": 3, "temperature": 0, "stop": ["x"], "n": 2},
    {"messages": MESSAGES, "response_format": {"type": "json_object"}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", template=TALKATIVE_TEMPLATE)


@pytest.fixture(scope="module")
def running_front() -> Iterator[Front]:
    with Front(environment={"HF_HUB_OFFLINE": "1"}) as front:
        yield front


@pytest.fixture
def front(running_front: Front) -> Iterator[Front]:
    yield running_front
    running_front.unload()
    wait_until(lambda: not running_front.get("/models")["models"], "the model is gone")


def tokenize(front: Front, **fields: Any) -> dict[str, Any]:
    answer = front.ask("POST", "/tokenize", {"model": "org/tiny", **fields})
    assert answer.status == 200, answer.body
    return dict(answer.json)


def test_count_is_that_of_the_same_chat_loaded_or_not(front: Front, folder: Path) -> None:
    fields = {"source": str(folder), "return_tokens": False}
    cold = [tokenize(front, **request, **fields) for request in REQUESTS]
    assert front.load(folder).status == 200
    warm = [tokenize(front, **request, **fields) for request in REQUESTS]
    usages = [
        front.chat(**{"max_tokens": 1, **request}).json["usage"]["prompt_tokens"]
        for request in REQUESTS
    ]
    assert [each["count"] for each in cold] == [each["count"] for each in warm] == usages
    assert len(set(usages)) == 5, "what a request says shows in its prompt"
    assert {each["max_model_len"] for each in cold} == {None}
    assert {each["max_model_len"] for each in warm} == {CONTEXT_TOKENS}


def test_tokens_come_unless_only_their_number_is_asked_for(front: Front, folder: Path) -> None:
    assert front.load(folder).status == 200
    talk = tokenize(front, **chat_body("hi"))
    assert talk["count"] == len(talk["tokens"])
    assert "tokens" not in tokenize(front, **chat_body("hi"), return_tokens=False)
    prompt = tokenize(front, prompt="hi")
    assert 0 < prompt["count"] < talk["count"]


def test_model_that_was_unloaded_still_counts_by_its_name(front: Front, folder: Path) -> None:
    assert front.load(folder, "org/other").status == 200
    body = chat_body("hi", model="org/other")
    before = tokenize(front, **body)
    assert front.unload("org/other").status in (200, 202)
    wait_until(lambda: front.model("org/other") == {}, "the model is gone")
    assert tokenize(front, **body) == {**before, "max_model_len": None}
    text = {"model": "org/other", "tokens": before["tokens"]}
    assert "hi" in front.ask("POST", "/detokenize", text).json["prompt"]


def test_model_that_is_being_loaded_counts(front: Front, tmp_path: Path) -> None:
    slow = write_model(tmp_path / "slow", fake={"load_seconds": 0.5})
    assert front.load(slow, wait=False).status == 202
    assert tokenize(front, **chat_body("hi"), source=str(slow))["count"] > 0
    assert front.phase() == "loading"
    wait_until(lambda: front.phase() == "ready", "the model is ready")


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "org/unknown"}, 404, "model_not_found"),
        ({"model": "not a repository"}, 404, "model_not_found"),
        ({"model": "org/unknown", "source": "org/unknown"}, 422, "repo_fetch_failed"),
        ({"model": "org/unknown", "source": "/nowhere"}, 422, "repo_fetch_failed"),
        ({"model": "org/unknown", "source": ["/nowhere"]}, 400, "invalid_request"),
        ({"model": 5}, 400, "invalid_request"),
    ],
)
def test_model_that_is_nowhere_is_refused(
    front: Front, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = front.ask("POST", "/tokenize", {**chat_body("hi"), **fields})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert b"/nowhere" not in answer.body


def test_text_comes_from_the_hub_without_the_weights(folder: Path, tmp_path: Path) -> None:
    settings = {"HF_CACHE": str(tmp_path / "cache")}
    with FakeHub({"org/tiny": folder}) as hub, Front(settings, {"HF_ENDPOINT": hub.url}) as front:
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(lambda _: tokenize(front, **chat_body("hi"))["count"], range(8)))
        names = [name for name, _ in hub.downloads]
        assert names.count("tokenizer.json") == 1
        assert "model.safetensors" not in names
        assert front.get("/discovery")["cached_models"] == []
        assert front.load(folder).status == 200
        assert {front.chat("hi").json["usage"]["prompt_tokens"]} == set(counts)
