"""A caller ends its own requests by their id, and nobody else's."""

import asyncio
from typing import Any

import pytest

from inference.client import Client
from inference.running import RunningRequests
from inference.wire import openai
from inference.wire.errors import RequestCancelled, RequestNotFound


def a_client(key: str = "", address: str = "127.0.0.1", **headers: str) -> Client:
    async def nothing(*_: Any) -> dict[str, Any]:
        raise AssertionError("nothing is to be said")

    told = {"x-request-id": "req-1", **headers} | ({"authorization": key} if key else {})
    scope = {
        "method": "POST",
        "path": "/",
        "headers": [(name.encode(), value.encode()) for name, value in told.items()],
        "client": (address, 1),
    }
    return Client(scope, nothing, nothing, openai.DIALECT)


async def start(running: RunningRequests, client: Client) -> "asyncio.Task[None]":
    async def run() -> None:
        with running.while_running(client):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(run())
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(("key", "address"), [("Bearer a", "10.0.0.9"), ("", "127.0.0.1")])
async def test_a_caller_ends_its_own_request(key: str, address: str) -> None:
    running = RunningRequests()
    task = await start(running, a_client(key))
    running.cancel("req-1", a_client(key, address))
    with pytest.raises(RequestCancelled):
        await task
    running.check_integrity()


@pytest.mark.parametrize(
    "caller",
    [
        a_client("Bearer b"),
        a_client(),
        a_client(address="10.0.0.9"),
        a_client(**{"x-api-key": "Bearer b"}),
    ],
)
async def test_nobody_ends_another_callers_request(caller: Client) -> None:
    running = RunningRequests()
    task = await start(running, a_client("Bearer a"))
    with pytest.raises(RequestNotFound):
        running.cancel("req-1", caller)
    assert not task.done()
    running.cancel("req-1", a_client("Bearer a"))
    with pytest.raises(RequestCancelled):
        await task


async def test_a_key_is_the_same_in_either_header() -> None:
    running = RunningRequests()
    task = await start(running, a_client("Bearer a"))
    running.cancel("req-1", a_client(**{"x-api-key": "a"}))
    with pytest.raises(RequestCancelled):
        await task


async def test_what_does_not_run_is_not_found() -> None:
    with pytest.raises(RequestNotFound):
        RunningRequests().cancel("req-1", a_client())


async def test_a_cancellation_that_is_not_the_callers_stays_one() -> None:
    running = RunningRequests()
    task = await start(running, a_client())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    running.check_integrity()


async def test_two_requests_of_one_id_end_together() -> None:
    running = RunningRequests()
    tasks = [await start(running, a_client()) for _ in range(2)]
    running.cancel("req-1", a_client())
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {RequestCancelled}
