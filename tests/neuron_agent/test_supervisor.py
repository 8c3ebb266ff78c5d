"""Loads, unloads and faults, on a real front process with fake device processes."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuron_agent.config import DevicesConfig, NeuronConfig
from neuron_agent.devices import channel
from neuron_agent.devices.inventory import take_inventory
from neuron_agent.protocol import LoadRequest
from neuron_agent.supervisor import Supervisor
from tests.fakes.fake_device import DEATHS_FILE, DIES_AT_START, REPLY
from tests.neuron_agent.front import Front, data_frames, read_answer, read_until, wait_until
from tests.neuron_agent.tiny_model import write_model

pytestmark = pytest.mark.slow

QUICK_WATCHDOG = {
    "WATCHDOG__STEP_SECONDS": "2",
    "WATCHDOG__BACKOFF_SECONDS": "0.01",
    "WATCHDOG__MAX_FAULTS": "100",
    "WATCHDOG__MAX_BACKOFF_SECONDS": "0.05",
}


@pytest.fixture(scope="module")
def running_front() -> Iterator[Front]:
    with Front({"DEVICES__CPU": "2", **QUICK_WATCHDOG}) as front:
        yield front


@pytest.fixture
def front(running_front: Front) -> Iterator[Front]:
    yield running_front
    running_front.hang_up()
    wait_until(lambda: running_front.num_requests() == 0, "every place is given back")
    for model in running_front.get("/models")["models"]:
        running_front.unload(model["id"])
    wait_until(lambda: not running_front.get("/models")["models"], "every model is gone")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny")


# --- loading -------------------------------------------------------------------------------------


def test_many_loads_of_one_model_are_one(front: Front, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "slow", fake={"load_seconds": 0.5})
    cycles = front.get("/health")["lifecycle_cycles"]
    statuses: list[int] = []
    askers = [
        threading.Thread(target=lambda: statuses.append(front.load(folder).status))
        for _ in range(8)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert statuses == [200] * 8
    assert front.get("/health")["lifecycle_cycles"] == cycles + 1


def test_load_without_waiting_is_accepted_and_seen_to_end(front: Front, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "slow", fake={"load_seconds": 0.5})
    answer = front.load(folder, wait=False)
    assert (answer.status, answer.json["phase"]) == (202, "loading")
    refused = front.chat()
    assert (refused.status, refused.error["code"]) == (503, "model_loading")
    assert refused.headers["retry-after"]
    frames = front.ask("GET", "/models/org/tiny/events").body.strip().split(b"\n\n")
    names = [frame.split(b"\n")[0] for frame in frames if frame.startswith(b"event")]
    assert names[0] == b"event: progress"
    assert names[-1] == b"event: ready"
    percents = [
        frame["progress"]["percent"]
        for frame in data_frames([frame.split(b"\n", 1)[-1] for frame in frames])
        if frame["progress"]
    ]
    assert percents == sorted(percents)
    assert front.chat().text == REPLY


def test_model_goes_to_the_device_with_the_most_free_memory(front: Front, tmp_path: Path) -> None:
    big = write_model(tmp_path / "big", fake={"memory_mb": 60})
    front.load(big, "first")
    front.load(big, "second")
    first, second = front.model("first")["devices"], front.model("second")["devices"]
    assert sorted(first + second) == [0, 1]


def test_model_goes_to_the_device_asked_for(front: Front, tiny: Path) -> None:
    assert front.load(tiny, "on-one", devices=[1]).status == 200
    assert front.model("on-one")["devices"] == [1]


def test_model_that_does_not_fit_says_by_how_much(front: Front, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "huge", fake={"memory_mb": 500})
    answer = front.load(folder)
    assert (answer.status, answer.error["code"]) == (422, "does_not_fit")
    assert (answer.error["needed_mb"], answer.error["free_mb"]) == (500, 100)
    assert front.model()["phase"] == "failed"
    assert front.model()["failure"]["code"] == "does_not_fit"
    events = front.ask("GET", "/models/org/tiny/events").body
    assert events.startswith(b"event: failed")
    refused = front.chat()
    assert (refused.status, refused.error["code"]) == (503, "model_not_loaded")


def test_failed_model_can_be_loaded_anew(front: Front, tmp_path: Path, tiny: Path) -> None:
    assert front.load(write_model(tmp_path / "huge", fake={"memory_mb": 500})).status == 422
    assert front.load(tiny).status == 200


def test_other_options_for_a_loaded_model_are_a_conflict(front: Front, tiny: Path) -> None:
    assert front.load(tiny).status == 200
    answer = front.load(tiny, max_context=100)
    assert (answer.status, answer.error["code"]) == (409, "loaded_with_other_options")
    assert front.load(tiny).status == 200


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ({"tensor_parallel": 2}, 422, "unsupported_option"),
        ({"harness": "other"}, 422, "unsupported_option"),
        ({"devices": [0, 1]}, 422, "unsupported_option"),
        ({"devices": [7]}, 422, "unsupported_option"),
        ({"source": "/nowhere/at/all"}, 422, "repo_fetch_failed"),
        ({"source": "not a repository"}, 422, "repo_fetch_failed"),
        ({"max_context": 0}, 400, "invalid_request"),
        ({"max_context": 2**63}, 400, "invalid_request"),
        ({"max_context": 2**64}, 400, "invalid_request"),
        ({"model_id": ""}, 400, "invalid_request"),
        ({"model_id": "a\nb"}, 400, "invalid_request"),
        ({"model_id": 5}, 400, "invalid_request"),
        ({"devices": "all"}, 400, "invalid_request"),
    ],
)
def test_load_that_cannot_work_is_refused_with_a_code(
    front: Front, tiny: Path, options: dict[str, Any], status: int, code: str
) -> None:
    answer = front.load(tiny, **options)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_folder_without_a_model_is_an_empty_repository(front: Front, tmp_path: Path) -> None:
    answer = front.load(tmp_path)
    assert (answer.status, answer.error["code"]) == (422, "empty_repo")
    assert str(tmp_path).encode() not in answer.body


def test_broken_tokenizer_fails_the_load_alone(front: Front, tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text("{}")
    answer = front.load(tiny)
    assert (answer.status, answer.error["code"]) == (422, "load_failed")


# --- unloading -----------------------------------------------------------------------------------


def test_unload_gives_the_memory_back(front: Front, tiny: Path) -> None:
    front.load(tiny)
    assert front.unload().status == 200
    assert front.phase() is None
    assert [d["vram_used_mb"] for d in front.get("/health")["devices"]] == [0, 0]
    assert front.unload().status == 404
    assert front.chat().status == 404


def test_unload_only_if_idle_never_cuts_a_request(front: Front, tiny: Path) -> None:
    front.load(tiny)
    sock = front.open_chat("FOREVER", stream=True)
    wait_until(lambda: front.num_requests() == 1, "a request runs")
    answer = front.unload(only_if_idle=True)
    assert (answer.status, answer.error["code"]) == (409, "busy")
    assert front.phase() == "ready"
    sock.close()
    wait_until(lambda: front.num_requests() == 0, "the request has left")
    assert front.unload(only_if_idle=True).status == 200


def test_drain_lets_running_requests_finish_and_takes_no_new_one(front: Front, tiny: Path) -> None:
    front.load(tiny)
    sock = front.open_chat("FOREVER", stream=True)
    wait_until(lambda: front.num_requests() == 1, "a request runs")
    answer = front.unload(drain_seconds=60)
    assert (answer.status, answer.json["phase"]) == (202, "draining")
    refused = front.chat()
    assert (refused.status, refused.error["code"]) == (503, "model_not_loaded")
    again = front.load(tiny)
    assert (again.status, again.error["code"]) == (409, "busy")
    assert front.phase() == "draining"
    sock.close()
    wait_until(lambda: front.phase() is None, "the drained model is unloaded")


@pytest.mark.parametrize("seconds", [-1, 1e300])
def test_drain_of_no_sensible_length_is_refused(front: Front, tiny: Path, seconds: float) -> None:
    front.load(tiny)
    answer = front.unload(drain_seconds=seconds)
    assert (answer.status, answer.error["param"]) == (400, "drain_seconds")
    assert front.phase() == "ready"


def test_drain_that_takes_too_long_ends_the_requests(front: Front, tiny: Path) -> None:
    front.load(tiny)
    sock = front.open_chat("FOREVER", stream=True)
    wait_until(lambda: front.num_requests() == 1, "a request runs")
    assert front.unload(drain_seconds=0.1).status == 202
    wait_until(lambda: front.phase() is None, "the model is unloaded")
    assert b'"code":"model_not_loaded"' in read_answer(sock)


def test_unload_in_the_middle_of_a_load_ends_it(front: Front, tmp_path: Path) -> None:
    front.load(write_model(tmp_path / "slow", fake={"load_seconds": 0.5}), wait=False)
    wait_until(lambda: front.model()["devices"], "the device has begun")
    assert front.unload().status in (200, 202)
    wait_until(lambda: front.phase() is None, "the model is gone")


def test_unload_in_the_middle_of_a_long_load_is_no_hang(
    front: Front, tmp_path: Path, tiny: Path
) -> None:
    """The device loads the model to its end first, silently, whatever becomes of it then."""
    front.load(tiny, devices=[0])
    num_faults = len(front.get("/health")["faults"])
    slow = write_model(tmp_path / "slow", fake={"load_seconds": 3.0})
    front.load(slow, "slow", devices=[0], wait=False)
    wait_until(lambda: stage_of(front, "slow") == "reading", "the device has begun")
    front.unload("slow")
    wait_until(lambda: front.phase("slow") is None, "the model is gone")
    assert len(front.get("/health")["faults"]) == num_faults
    assert front.phase() == "ready"


def stage_of(front: Front, model_id: str) -> str | None:
    progress = front.model(model_id).get("progress")
    return progress["stage"] if progress else None


def test_drain_is_shortened_by_a_later_unload_and_never_prolonged(front: Front, tiny: Path) -> None:
    front.load(tiny)
    sock = front.open_chat("FOREVER", stream=True)
    wait_until(lambda: front.num_requests() == 1, "a request runs")
    assert front.unload(drain_seconds=60).json["phase"] == "draining"
    front.unload(drain_seconds=0, only_if_idle=True)
    front.unload(drain_seconds=600)
    assert (front.phase(), front.num_requests()) == ("draining", 1)
    front.unload(drain_seconds=0.1)
    wait_until(lambda: front.phase() is None, "the model is unloaded")
    assert b'"code":"model_not_loaded"' in read_answer(sock)


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kind"), [("POISON", "poisoned"), ("DIE", "died"), ("HANG", "hung")]
)
def test_broken_device_ends_its_requests_and_its_model_recovers(
    front: Front, tiny: Path, word: str, kind: str
) -> None:
    front.load(tiny, devices=[0])
    front.load(tiny, "neighbour", devices=[1])
    sock = front.open_chat("FOREVER", stream=True)
    neighbour = front.open_chat("FOREVER", stream=True, model="neighbour")
    read_until(sock, b"data: ")
    answer = front.chat(word)
    assert (answer.status, answer.error["code"]) == (503, "device_fault")
    assert answer.headers["retry-after"]
    stream = read_answer(sock)
    assert b'"code":"device_fault"' in stream
    assert b"[DONE]" not in stream
    wait_until(lambda: front.phase() == "ready", "the model recovers by itself")
    assert front.chat().text == REPLY
    assert front.num_requests("neighbour") == 1
    neighbour.close()
    fault = front.get("/health")["faults"][-1]
    assert (fault["kind"], fault["device"], fault["models"]) == (kind, 0, ["org/tiny"])


def test_killed_device_process_never_closes_the_port(front: Front, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "slow", fake={"load_seconds": 0.3})
    front.load(folder, devices=[0])
    before = set(front.device_pids())
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    refused = wait_until(lambda: recovering(front), "requests are refused meanwhile")
    assert refused.error["code"] == "model_loading"
    assert refused.headers["retry-after"]
    wait_until(lambda: front.phase() == "ready", "the model recovers by itself")
    assert not before & set(front.device_pids())
    assert front.chat().text == REPLY


def recovering(front: Front) -> Any:
    """Return the refusal of a request while the model recovers, else None."""
    is_recovering = front.phase() == "recovering"
    answer = front.chat()
    return answer if is_recovering and answer.status == 503 else None


def test_stopped_device_process_counts_as_hung(front: Front, tiny: Path) -> None:
    front.load(tiny, devices=[0])
    (pid,) = (pid for pid in front.device_pids() if device_of(pid) == "cpu:0")
    num_faults = len(front.get("/health")["faults"])
    os.kill(pid, signal.SIGSTOP)
    faults = wait_until(lambda: front.get("/health")["faults"][num_faults:], "it is seen to hang")
    assert [fault["kind"] for fault in faults] == ["hung"]
    wait_until(lambda: front.phase() == "ready", "the model recovers by itself")
    assert pid not in front.device_pids()


def device_of(pid: int) -> str:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return arguments[arguments.index("--device") + 1]


def test_load_may_take_longer_than_a_step(front: Front, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "slow", fake={"load_seconds": 3.0})
    num_faults = len(front.get("/health")["faults"])
    assert front.load(folder).status == 200
    assert len(front.get("/health")["faults"]) == num_faults


def test_model_that_ends_its_process_each_time_fails_and_spares_the_others(
    front: Front, tmp_path: Path, tiny: Path
) -> None:
    front.load(tiny, devices=[0])
    deadly = write_model(tmp_path / "deadly", fake={"dies_while": "preparing"})
    answer = front.load(deadly, "deadly", devices=[0])
    assert (answer.status, answer.error["code"]) == (503, "device_fault")
    wait_until(lambda: front.phase() == "ready", "the innocent model recovers")
    assert front.chat().text == REPLY


def test_poison_during_a_load_is_tried_again(front: Front, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "unlucky", fake={"poisoned_once_while": "preparing"})
    assert front.load(folder).status == 200
    assert front.get("/health")["faults"][-1]["kind"] == "poisoned"
    assert front.chat().text == REPLY


def test_process_that_dies_before_it_has_started_is_no_model_s_fault(
    tmp_path: Path, tiny: Path
) -> None:
    deaths = tmp_path / "deaths"
    with Front(QUICK_WATCHDOG, {DEATHS_FILE: str(deaths)}) as front:
        front.load(tiny)
        deaths.write_text("xxxx")
        os.kill(front.device_pids()[0], signal.SIGKILL)
        wait_until(lambda: len(front.get("/health")["faults"]) == 5, "four more have died")
        wait_until(lambda: front.phase() in ("ready", "failed"), "the fifth has started")
        assert front.phase() == "ready"
        assert front.chat().text == REPLY


def test_requests_do_not_wait_behind_a_hub_that_is_silent(tmp_path: Path, tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        hub = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_ETAG_TIMEOUT": "300",
            "HF_HUB_DOWNLOAD_TIMEOUT": "300",
        }
        with Front({}, hub) as front:
            for number in range(40):  # more than the event loop has threads of its own
                name = f"org/absent-{number}"
                assert front.load(Path(), name, source=name, wait=False).status == 202
            assert front.load(tiny).status == 200
            assert front.chat("a big prompt " * 1000).text == REPLY
            assert front.phase("org/absent-0") == "loading"


def test_device_whose_process_has_started_goes_before_an_emptier_one() -> None:
    config = DevicesConfig(cpu=2, cpu_memory_mb=100, cuda=False)
    supervisor = Supervisor(NeuronConfig(devices=config), take_inventory(config, {}), {})
    restarting, started = supervisor.devices
    megabyte = 2**20
    started.started = channel.Started(100 * megabyte, "0", "0")
    started.report = channel.Report(60 * megabyte, 40 * megabyte)
    request = LoadRequest("m")
    assert supervisor.choose_device(request, 30 * megabyte) is started
    assert supervisor.choose_device(request, 50 * megabyte) is restarting
    assert supervisor.choose_device(replace(request, devices=(0,))) is restarting


def test_request_that_waits_too_long_is_sent_away(tiny: Path) -> None:
    with Front({"MAX_WAIT_SECONDS": "0.5"}) as front:
        front.load(tiny)
        answer = front.chat("QUEUED")
        assert (answer.status, answer.error["code"]) == (503, "saturated")
        assert answer.headers["retry-after"]
        assert front.num_requests() == 0


def test_device_that_fails_again_and_again_is_given_up(tiny: Path) -> None:
    settings = {**QUICK_WATCHDOG, "WATCHDOG__MAX_FAULTS": "3"}
    with Front(settings, {DIES_AT_START: "1"}) as front:
        wait_until(lambda: front.get("/health")["devices"][0]["given_up"], "it is given up")
        assert len(front.get("/health")["faults"]) == 3
        answer = front.load(tiny)
        assert (answer.status, answer.error["code"]) == (503, "device_fault")


def test_default_models_are_loaded_by_themselves(tiny: Path) -> None:
    wanted = f'[{{"model_id": "org/tiny", "source": "{tiny}"}}]'
    with Front({"DEFAULT_MODELS": wanted}) as front:
        wait_until(lambda: front.phase() == "ready", "the default model is ready")
        assert front.chat().text == REPLY
