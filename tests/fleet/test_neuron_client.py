"""Control calls to a real fake neuron, and to what is none."""

import asyncio
import socket
import threading

import pytest

from fleet.neuron_client import (
    NeuronAddress,
    NeuronCalls,
    NeuronError,
    NeuronGarbled,
    NeuronRefused,
    NeuronUnreachable,
)
from neuron_agent.protocol import ErrorCode, LoadRequest, ModelPhase, UnloadRequest
from tests.fakes.http_server import Exchange, HttpServer
from tests.fakes.neuron import FakeNeuron, Refusal
from tests.world import START


def ask(neuron: FakeNeuron, boot_id: str = "", token: str | None = None) -> object:
    address = NeuronAddress(1, "beast", neuron.url, token, boot_id)
    with NeuronCalls() as calls:
        calls.start("poll", calls.client.poll(address, START))
        ((_, answer),) = calls.finished(10)
    return answer


def test_a_poll_reads_the_hardware_of_a_new_process_only() -> None:
    with FakeNeuron(device_memory_mb=(100, 200)) as neuron:
        first = ask(neuron)
        again = ask(neuron, boot_id=neuron.boot_id)
        assert [d.vram_total_mb for d in first.discovery.devices] == [100, 200]
        assert first.version.version == "fake"
        assert again.discovery is None
        assert len(neuron.requests_to("/discovery")) == 1


def test_the_token_is_presented() -> None:
    with FakeNeuron(token="s3cret") as neuron:
        assert isinstance(ask(neuron), NeuronRefused)
        assert not isinstance(ask(neuron, token="s3cret"), NeuronError)


def test_a_refusal_brings_code_and_numbers() -> None:
    with FakeNeuron() as neuron, NeuronCalls() as calls:
        neuron.knobs.refuse_load = Refusal(
            422, ErrorCode.DOES_NOT_FIT, "too large", needed_mb=10, free_mb=5
        )
        address = NeuronAddress(1, "beast", neuron.url)
        calls.start("load", calls.client.load(address, LoadRequest("a")))
        calls.start("unload", calls.client.unload(address, UnloadRequest("a")))
        answers = dict(calls.finished(10))
    assert answers["load"].status == 422
    assert (answers["load"].error.needed_mb, answers["load"].error.free_mb) == (10, 5)
    assert answers["unload"].status == 404


def test_a_load_is_begun_not_waited_for() -> None:
    with FakeNeuron() as neuron, NeuronCalls() as calls:
        neuron.knobs.load_seconds = float("inf")
        address = NeuronAddress(1, "beast", neuron.url)
        calls.start("load", calls.client.load(address, LoadRequest("a")))
        ((_, accepted),) = calls.finished(10)
        assert accepted.phase is ModelPhase.LOADING


def test_a_closed_port_is_unreachable_at_once() -> None:
    with FakeNeuron() as neuron:
        neuron.stop()
        assert isinstance(ask(neuron), NeuronUnreachable)


def test_an_answer_that_is_no_neurons_is_told_apart() -> None:
    with FakeNeuron() as neuron, NeuronCalls() as calls:
        address = NeuronAddress(1, "beast", f"{neuron.url}/v1/models?")
        calls.start("poll", calls.client.poll(address, START))
        ((_, answer),) = calls.finished(10)
    assert isinstance(answer, NeuronGarbled)


def test_a_slow_neuron_holds_up_no_other_and_goes_on() -> None:
    with FakeNeuron() as slow, FakeNeuron() as quick, NeuronCalls() as calls:
        slow.knobs.hang = True
        for name, neuron in (("slow", slow), ("quick", quick)):
            calls.start(name, calls.client.poll(NeuronAddress(1, name, neuron.url), START))
        came: list[object] = []
        while "quick" not in came:
            came += [key for key, _ in calls.finished(0.05)]
        assert came == ["quick"]
        assert calls.pending == ("slow",)
        slow.knobs.hang = False
        ((key, answer),) = calls.finished(10)
        assert key == "slow"
        assert not isinstance(answer, NeuronError)


def test_calls_left_open_are_cancelled_with_the_block() -> None:
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    with NeuronCalls() as calls:
        calls.start("endless", endless())
        assert calls.finished(0.01) == []
    assert ended == ["cancelled"]


def test_a_bug_in_a_call_is_not_taken_for_an_answer() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with NeuronCalls() as calls:
        calls.start("bug", broken())
        with pytest.raises(ZeroDivisionError):
            calls.finished(10)


def test_a_look_up_that_hangs_does_not_hold_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up, ended = threading.Event(), threading.Event()

    def hang(*args: object, **options: object) -> None:
        given_up.wait(5)
        ended.set()
        raise socket.gaierror("nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with NeuronCalls() as calls:
        address = NeuronAddress(1, "beast", "http://beast.internal:1")
        calls.start("poll", calls.client.poll(address, START))
        assert calls.finished(0.05) == []
    assert not ended.is_set()
    given_up.set()
    assert ended.wait(5)


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_nested_without_end_is_nonsense_like_any_other(status: int) -> None:
    nested = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

    async def serve(exchange: Exchange) -> None:
        exchange.answer(status, nested)

    server = HttpServer(serve)
    try:
        server.start()
        with NeuronCalls() as calls:
            address = NeuronAddress(1, "beast", f"http://127.0.0.1:{server.port}")
            calls.start("poll", calls.client.poll(address, START))
            ((_, answer),) = calls.finished(10)
    finally:
        server.close()
    assert isinstance(answer, NeuronGarbled)
