"""Paths, methods and bad bodies over real HTTP: always OpenAI's shape, never HTML."""

import asyncio
import gzip
import io
import json
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from yarl import URL

from fleet.planner.phases import NeuronPhase
from tests.fakes.neuron import FakeNeuron
from tests.inference.world import (
    MODEL,
    Served,
    a_model,
    a_neuron,
    a_placement,
    a_view,
    chat_body,
)

pytestmark = pytest.mark.slow


async def error_of(service: Served, method: str, path: str, **options: object) -> tuple[int, dict]:
    async with service.http.request(method, service.url + path, **options) as answer:
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
        error = (await answer.json())["error"]
        assert error.keys() >= {"message", "type", "param", "code"}
        assert isinstance(error["code"], str)
        return answer.status, error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/audio/speech", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v1/models/no/such", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", f"/v1/models/{MODEL}", 405, "method_not_allowed"),
        ("PUT", "/health", 405, "method_not_allowed"),
    ],
)
async def test_a_wrong_path_or_method_is_an_openai_error(
    service: Served, method: str, path: str, status: int, code: str
) -> None:
    told, error = await error_of(service, method, path)
    assert (told, error["code"]) == (status, code)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"not json", None),
        (b'{"model": "m", "messages": [{"role": "user"}], "x": NaN}', None),
        (b'{"model": "\xff", "messages": [{"role": "user"}]}', None),
        (b'{"model": "m", "x": "\\ud800", "messages": [{"role": "user"}]}', None),
        (b'{"messages": [{"role": "user"}]}', "model"),
        (b'{"model": 3, "messages": [{"role": "user"}]}', "model"),
        (b'{"model": "m", "messages": "hi"}', "messages"),
        (
            b'{"model": "m", "messages": [{"role": "user"}], "x": ' + b"[" * 70 + b"]" * 70 + b"}",
            None,
        ),
        (b"[" * 100_000, None),
    ],
)
async def test_a_bad_body_is_400_naming_the_parameter(
    service: Served, body: bytes, param: str | None
) -> None:
    status, error = await error_of(service, "POST", "/v1/chat/completions", data=body)
    assert (status, error["param"]) == (400, param)
    assert (await service.record()).status == 400


async def test_gzip_bodies_are_taken(service: Served, neuron: FakeNeuron) -> None:
    body = json.dumps(chat_body()).encode()
    headers = {"content-encoding": "gzip"}
    url = f"{service.url}/v1/chat/completions"
    async with service.http.post(url, data=gzip.compress(body), headers=headers) as answer:
        assert answer.status == 200
    assert neuron.requests_to("/v1/chat/completions")[0].body == body


async def test_a_large_body_is_taken(service: Served, neuron: FakeNeuron) -> None:
    body = json.dumps(chat_body(filler="x" * (20 << 20))).encode()
    url = f"{service.url}/v1/chat/completions"
    async with service.http.post(url, data=io.BytesIO(body)) as answer:
        assert answer.status == 200
    assert neuron.requests_to("/v1/chat/completions")[0].body == body


async def test_a_client_that_leaves_in_mid_body_is_recorded(service: Served) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    writer.close()
    assert (await service.record()).status == 499


async def test_an_insane_request_id_is_replaced(service: Served) -> None:
    headers = {"x-request-id": "a b<script>"}
    async with service.http.get(f"{service.url}/v1/models", headers=headers) as answer:
        assert answer.headers["x-request-id"].startswith("req-")


async def test_models_are_listed_with_where_they_are(service: Served, neuron: FakeNeuron) -> None:
    model = a_model(
        cost_input=Decimal("0.10"), created_at=datetime(2026, 1, 1, tzinfo=UTC), tool_call=True
    )
    models = [model, a_model("off", enabled=False)]
    aliases = {"local/large": MODEL, "to/off": "off"}
    service.show(a_view([a_neuron(neuron.url)], [a_placement()], models, aliases))
    async with service.http.get(f"{service.url}/v1/models/") as answer:
        listed = await answer.json()
    assert [entry["id"] for entry in listed["data"]] == [MODEL, "local/large"]
    assert listed["data"][0] == {
        "id": MODEL,
        "object": "model",
        "created": 1767225600,
        "owned_by": "cortex",
        "loaded": True,
        "phase": "ready",
        "feasible_on": ["beast"],
        "locations": [{"neuron": "beast", "phase": "ready", "devices": [0], "vram_mb": 1000}],
        "capabilities": ["chat"],
        "limit": {"context": 32768, "input": 32768, "output": 32768},
        "cost": {"input": 0.1, "output": None},
        "tool_call": True,
        "reasoning": False,
        "max_model_len": 32768,
    }


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models/", "/v1/models//"])
async def test_a_slash_too_many_makes_no_difference(service: Served, path: str) -> None:
    async with service.http.get(URL(service.url + path, encoded=True)) as answer:
        assert (answer.status, (await answer.json())["object"]) == (200, "list")


@pytest.mark.parametrize("name", [MODEL, "local/large", MODEL.replace("/", "%2F")])
async def test_a_model_is_found_by_a_name_with_slashes(service: Served, name: str) -> None:
    url = URL(f"{service.url}/v1/models/{name}", encoded=True)
    async with service.http.get(url) as answer:
        assert answer.status == 200
        assert (await answer.json())["object"] == "model"


async def health_of(service: Served) -> tuple[int, str, list[str]]:
    async with service.http.get(f"{service.url}/health") as answer:
        body = await answer.json()
        return answer.status, body["status"], body["unservable"]


async def test_health_says_what_cannot_be_served(service: Served, neuron: FakeNeuron) -> None:
    assert await health_of(service) == (200, "ok", [])
    well = a_neuron(neuron.url)
    away = a_neuron("http://x", 2, "away", phase=NeuronPhase.LOST, dispatchable=False)
    models = [a_model(), a_model("org/lonely", feasible_on=("away",))]
    service.show(a_view([well, away], models=models))
    assert await health_of(service) == (200, "impaired", ["org/lonely"])
    service.show(a_view([away], models=models))
    assert await health_of(service) == (503, "degraded", ["org/lonely", MODEL])


async def test_the_root_says_how_cortex_is(service: Served) -> None:
    for path in ("/", ""):
        async with service.http.get(service.url + path) as answer:
            assert answer.status == 200
            assert (await answer.json())["status"] == "ok"
    assert (await error_of(service, "POST", "/"))[0] == 405


async def test_a_bug_of_ours_is_500_with_the_request_id_and_nothing_else(
    service: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(service.gateway, "_find_model", fail)
    async with service.chat() as answer:
        body = await answer.text()
        assert answer.status == 500
        assert answer.headers["x-request-id"] in body
    assert "secret" not in body
    assert "secret detail" in caplog.text
    assert (await service.record()).error_code == "internal_error"
