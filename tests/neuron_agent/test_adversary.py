"""Requests made to do harm: each fails alone and says why, while others stream on unharmed."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.neuron_agent.front import Answer, Front, wait_until
from tests.neuron_agent.whole import MODEL, Bystanders, is_idle, write_talking_model

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(180)]

SETTINGS = {
    "DEVICE_COMMAND": json.dumps([sys.executable, "-m", "neuron_agent.devices.process"]),
    "DEVICES__CPU_MEMORY_MB": "800",
    "DEVICES__THREADS": "1",
    "LOG_LEVEL": "error",
}
NUM_BYSTANDERS = 8
BYSTANDER_TOKENS = 250
BOMB = "org/bomb"
TEMPLATE_BOMB = """\
{%- for message in messages %}{{ message.content }}
{%- for a in range(99999) %}{%- for b in range(99999) %}x{%- endfor %}{%- endfor %}
{%- endfor %}"""
PATTERN_OF_PATTERNS = "(" * 40 + "a" + "+)+" * 40 + "$"
HUGE_REPETITION = "((((a{1000}){1000}){1000}){1000})b"
ENDLESS = {"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 4, **fields}


def schema(definition: dict[str, Any]) -> dict[str, Any]:
    named = {"name": "x", "schema": definition, "strict": True}
    return chat(
        max_tokens=8,
        response_format={"type": "json_schema", "json_schema": named},
        chat_template_kwargs={"enable_thinking": False},
    )


def big_schema(num_bytes: int) -> dict[str, Any]:
    names = (f"property_{number:06d}" for number in range(num_bytes // 40))
    return {"type": "object", "properties": {name: {"type": "string"} for name in names}}


def deep_schema(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


def text_of_pattern(pattern: str) -> dict[str, Any]:
    return schema({"type": "string", "pattern": pattern})


ATTACKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "token id past the vocabulary": (completion(prompt=[5, 10**6]), (400,)),
    "token id past 32 bits": (completion(prompt=[5, 10**12]), (400,)),
    "negative token id": (completion(prompt=[5, -1]), (400,)),
    "bias on a token that is not there": (completion(logit_bias={"1000000": 5}), (400,)),
    "no tokens at all": (completion(max_tokens=0), (400,)),
    "a million million tokens": (completion(max_tokens=10**12), (400,)),
    "a prompt of nothing": (completion(prompt=[]), (400,)),
    "a prompt past the context": (completion(prompt=[5] * 100_000), (400,)),
    "a schema of 100 kB": (schema(big_schema(100_000)), (400,)),
    "a schema of 300 levels": (schema(deep_schema(300)), (400,)),
    "an expression that calls itself": (text_of_pattern("(a(?R)?b)"), (400,)),
    "an expression cut short": (text_of_pattern("(((("), (400,)),
    "a template that never ends": (chat(model=BOMB, max_tokens=4), (400, 422)),
    "temperature that is no number": (completion(temperature="NaN"), (400,)),
    "a thousand answers": (completion(n=1000), (400,)),
}
"""What is sent, and the statuses with which it may be refused."""

HARMLESS: dict[str, dict[str, Any]] = {
    "a schema that is only itself": schema(ENDLESS),
    "a million million repetitions": text_of_pattern(HUGE_REPETITION),
    "nested repetition": text_of_pattern(PATTERN_OF_PATTERNS),
    "a recursive schema": schema(
        {
            "type": "object",
            "properties": {"next": {"$ref": "#"}},
            "additionalProperties": False,
        }
    ),
}
"""What looks like harm and may be served or refused, but quickly and alone."""


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    models = tmp_path_factory.mktemp("models")
    with Front(SETTINGS) as front:
        assert front.load(write_talking_model(models / "tiny"), dtype="float32").status == 200
        bomb = write_talking_model(models / "bomb", template=TEMPLATE_BOMB)
        assert front.load(bomb, BOMB, dtype="float32").status == 200
        yield front


def attack(front: Front, body: dict[str, Any]) -> Answer:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    return front.ask("POST", path, body)


def test_every_attack_fails_alone_with_a_clear_error(front: Front) -> None:
    refusals = {}
    (device,) = front.device_pids()
    with Bystanders(front, NUM_BYSTANDERS, BYSTANDER_TOKENS) as bystanders:
        for name, (body, statuses) in ATTACKS.items():
            bystanders.keep_running()
            answer = attack(front, body)
            assert answer.status in statuses, (name, answer.status, answer.body[:500])
            refusals[name] = answer.error["message"]
        bystanders.check()
    assert all(1 <= len(message) < 1000 for message in refusals.values())
    assert front.device_pids() == [device]
    assert front.get("/health")["faults"] == []
    wait_until(lambda: is_idle(front), "nothing of them is left")


@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_like_harm_harms_nobody(front: Front, name: str) -> None:
    with Bystanders(front, NUM_BYSTANDERS, BYSTANDER_TOKENS) as bystanders:
        answer = attack(front, HARMLESS[name])
        bystanders.check()
    assert answer.status == 200 or answer.error["message"]
    assert front.get("/health")["faults"] == []
    wait_until(lambda: is_idle(front), "nothing of it is left")
