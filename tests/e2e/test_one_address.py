"""One request from a client to a device thread and back, and what may happen on the way."""

import concurrent.futures
import json
import os
import signal
import threading
import time
from collections.abc import Iterator

import aiohttp
import openai
import pytest

from neuron_agent.demo.texts import CONVERSATIONS
from tests.demo_meaning import meaning_of, message_meaning
from tests.e2e.cluster import Cluster, wait_until
from tests.e2e.http import Answer, get_json, open_stream, post

MODEL = "cortex-demo"
OTHER = "cortex-demo-twin"
GREETING = next(talk for talk in CONVERSATIONS if talk.messages[-1]["content"] == "Hello!")
LONGEST = max((talk for talk in CONVERSATIONS if not talk.tools), key=lambda talk: len(talk.reply))


def body(model: str = MODEL, talk=GREETING, **options) -> dict:
    return {
        "model": model,
        "messages": list(talk.messages),
        "temperature": 0,
        "chat_template_kwargs": dict(talk.chat_template_kwargs),
        **options,
    }


def for_sdk(**options) -> dict:
    """The same, with what the SDK does not know where it wants it."""
    arguments = body(**options)
    arguments["extra_body"] = {"chat_template_kwargs": arguments.pop("chat_template_kwargs")}
    return arguments


def ask(cluster: Cluster, **options) -> Answer:
    return post(f"{cluster.api}/v1/chat/completions", body(**options))


def phase_of(cluster: Cluster, model: str) -> str | None:
    entries = get_json(f"{cluster.api}/v1/models")["data"]
    return next((entry["phase"] for entry in entries if entry["id"] == model), None)


def in_flight(cluster: Cluster) -> int:
    models = get_json(f"{cluster.neuron}/health")["models"]
    return sum(model["in_flight"] + model["queue_depth"] for model in models)


def num_loads(cluster: Cluster, model: str) -> int:
    return cluster.query(f"Placement.objects.filter(profile__model_id={model!r}).count()")


def unload(cluster: Cluster, model: str) -> None:
    if phase_of(cluster, model) is not None:
        cluster.manage("unload", model)
    wait_until(lambda: phase_of(cluster, model) is None, what=f"{model} is gone")


@pytest.fixture
def client(cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{cluster.api}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def not_loaded(cluster: Cluster) -> None:
    unload(cluster, MODEL)


@pytest.fixture
def loaded(cluster: Cluster) -> None:
    assert ask(cluster).status == 200


@pytest.fixture
def twin(cluster: Cluster) -> Iterator[str]:
    """A second model, of which the memory holds only one at a time."""
    cluster.query(
        f"ModelProfile.objects.get_or_create(model_id={OTHER!r}, defaults=dict("
        f"source=ModelProfile.objects.get(model_id={MODEL!r}).source))[0].pk"
    )
    wait_until(lambda: ask(cluster, model=OTHER).status == 200, what="the catalogue is read")
    yield OTHER
    unload(cluster, OTHER)


def test_the_first_request_is_a_cold_start_and_the_second_is_not(cluster, not_loaded):
    began = time.time()
    with open_stream(f"{cluster.api}/v1/chat/completions", body(stream=True)) as stream:
        assert stream.headers["x-cortex-cold-start"] == "true"
        assert stream.read_text() == GREETING.reply
    warm = ask(cluster)
    assert warm.headers["x-cortex-cold-start"] == "false"
    assert warm.headers["x-cortex-neuron"] == "local"
    assert warm.json()["choices"][0]["message"]["content"] == GREETING.reply

    entry = next(
        entry for entry in get_json(f"{cluster.api}/v1/models")["data"] if entry["id"] == MODEL
    )
    assert entry["loaded"] is True
    assert [place["neuron"] for place in entry["locations"]] == ["local"]

    def both_recorded() -> list:
        requests = cluster.status()["requests"]
        return [row for row in requests if row["at"] >= began and row["status"] == 200][:2]

    newest, older = wait_until(lambda: len(rows := both_recorded()) == 2 and rows)
    assert (newest["cold_start"], older["cold_start"]) == (False, True)
    assert newest["prompt_tokens"] > 0
    assert newest["completion_tokens"] > 0
    assert newest["ttft_seconds"] <= newest["latency_seconds"]
    status = cluster.status()
    assert [neuron["phase"] for neuron in status["neurons"]] == ["healthy"]
    assert [place["model"] for place in status["placements"]] == [MODEL]


def test_the_sdk_gets_a_plain_answer(client, loaded):
    answer = client.chat.completions.create(**for_sdk())
    assert answer.choices[0].message.content == GREETING.reply
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_sdk_gets_a_stream_with_usage(client, loaded):
    chunks = list(
        client.chat.completions.create(
            **for_sdk(talk=LONGEST), stream=True, stream_options={"include_usage": True}
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == LONGEST.reply
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 100


def test_an_sdk_that_aborts_frees_the_neuron_within_a_second(cluster, client, loaded):
    stream = client.chat.completions.create(**for_sdk(talk=LONGEST), stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: in_flight(cluster) == 0, 1.0, "nothing in flight")


@pytest.mark.parametrize("talk", CONVERSATIONS, ids=lambda talk: talk.name)
def test_every_conversation_of_the_demo_is_answered_as_promised(cluster, loaded, talk):
    options = {"tools": list(talk.tools)} if talk.tools else {}
    answer = ask(cluster, talk=talk, **options)
    assert answer.status == 200
    message = answer.json()["choices"][0]["message"]
    assert message_meaning(message) == meaning_of(talk.reply)


def test_twenty_clients_of_a_model_not_loaded_cause_one_load(cluster, not_loaded):
    before = num_loads(cluster, MODEL)
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: ask(cluster), range(20)))
    assert [answer.status for answer in answers] == [200] * 20
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    assert texts == {GREETING.reply}
    assert num_loads(cluster, MODEL) == before + 1


def test_two_models_take_turns_in_memory_for_one(cluster, loaded, twin):
    last = cluster.query("FleetEvent.objects.order_by('-id').values_list('id').first()")[0]
    for model in (MODEL, twin, MODEL, twin):
        answer = ask(cluster, model=model)
        assert answer.status == 200, answer.text
        assert answer.headers["x-cortex-cold-start"] == "true"
        assert answer.json()["choices"][0]["message"]["content"] == GREETING.reply
    events = cluster.query(f"list(FleetEvent.objects.filter(id__gt={last}).values())")
    evictions = [event for event in events if event["data"].get("reason") == "evicted"]
    displaced = {(event["model"], event["data"]["for_model"]) for event in evictions}
    assert displaced == {(MODEL, twin), (twin, MODEL)}
    assert all(event["data"]["needed_bytes"] > 0 for event in evictions)
    assert all(twin in event["message"] for event in evictions)


def test_a_model_that_is_generating_is_not_evicted(cluster, loaded, twin):
    assert ask(cluster).status == 200
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        running = [
            pool.submit(ask, cluster, talk=LONGEST) for _ in range(8)
        ]  # eight at once take a while
        wait_until(lambda: in_flight(cluster) > 0, 10.0, "they run")
        newcomer = pool.submit(ask, cluster, model=twin)
        answers = [future.result() for future in running]
        assert [answer.status for answer in answers] == [200] * 8
        for answer in answers:
            assert answer.json()["choices"][0]["message"]["content"] == LONGEST.reply
        assert newcomer.result().status == 200


def test_a_killed_device_process_comes_back_and_the_port_never_closes(cluster, loaded):
    closed: list[Exception] = []
    done = threading.Event()

    def knock() -> None:
        while not done.is_set():
            try:
                get_json(f"{cluster.neuron}/health")
            except OSError as error:
                closed.append(error)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        (pid,) = cluster.device_pids()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: cluster.device_pids() not in ([], [pid]), what="a new device process")
        wait_until(lambda: ask(cluster).status == 200, 60.0, "it serves again")
    finally:
        done.set()
        knocking.join()
    assert closed == []
    faults = get_json(f"{cluster.neuron}/health")["faults"]
    assert faults[-1]["kind"] == "died"


def test_a_killed_neuron_is_a_503_at_once_and_comes_back(cluster, loaded):
    pid = cluster.pid("neuron")
    cluster.kill("neuron")
    answer = post(f"{cluster.api}/v1/chat/completions", body(), timeout_seconds=5.0)
    assert answer.status == 503, answer.text
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["error"]["code"]
    wait_until(lambda: cluster.pid("neuron") != pid, what="it is started again")
    wait_until(lambda: ask(cluster).status == 200, 60.0, "it serves again")


def test_a_stream_cut_by_a_killed_neuron_ends_in_an_error_frame(cluster, loaded):
    pid = cluster.pid("neuron")
    with open_stream(f"{cluster.api}/v1/chat/completions", body(talk=LONGEST, stream=True)) as s:
        assert s.next_data()["choices"]
        cluster.kill("neuron")
        rest = list(s.lines())
    assert rest[-1] != "data: [DONE]"
    assert "error" in json.loads(rest[-1].removeprefix("data: "))
    wait_until(lambda: cluster.pid("neuron") != pid, what="it is started again")
    wait_until(lambda: ask(cluster).status == 200, 60.0, "it serves again")


def test_a_worker_killed_in_mid_load_loses_nobody(cluster, not_loaded):
    before, (device,) = cluster.pid("worker"), cluster.device_pids()
    os.kill(device, signal.SIGSTOP)  # the load cannot end before we let it
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ask, cluster)
            wait_until(lambda: phase_of(cluster, MODEL) == "loading", what="the load has begun")
            cluster.kill("worker")
            wait_until(lambda: cluster.pid("worker") != before, what="it is started again")
            os.kill(device, signal.SIGCONT)
            answer = waiting.result()
    finally:
        os.kill(device, signal.SIGCONT)
    assert answer.status == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == GREETING.reply


def test_prometheus_sees_requests_and_the_fleet(cluster, loaded):
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{cluster.metrics_port}/metrics") as response:
        text = response.read().decode()
    assert 'cortex_neuron_up{neuron="local"} 1.0' in text
    assert "cortex_time_to_first_token_seconds_bucket" in text
    assert "cortex_requests_total{" in text


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1", "/v1/chat/completions/x"])
async def test_an_unknown_path_is_refused_in_the_dialect(cluster, path):
    async with aiohttp.ClientSession() as session, session.get(cluster.api + path) as response:
        assert response.status in (404, 405)
        assert (await response.json())["error"]["code"]


def test_a_second_up_on_the_same_data_is_refused(cluster):
    result = cluster.manage("up", check=False)
    assert result.returncode != 0
    assert "CORTEX_DATA" in result.stderr
    assert "Traceback" not in result.stderr
