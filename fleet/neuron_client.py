"""The control calls Cortex makes to a neuron: poll, load, unload.

It knows HTTP and the protocol, no rows and no rules. Every call ends within CALL_TIMEOUT_SECONDS.

NeuronError
  NeuronUnreachable   no whole answer came: refused, broken, too slow; a later try may work
  NeuronRefused       the neuron answered with an error: status, code, hint and numbers
  NeuronGarbled       the answer is not the protocol's: another program, or too old a neuron
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import msgspec

from fleet.observation import Report
from neuron_agent import protocol

CALL_TIMEOUT_SECONDS = 4.5
"""Of each call. A task that polls or tells neurons stays under five seconds with it."""
_BODY_LIMIT_BYTES = 16 * 2**20
_MAX_LOOK_UPS = 32
"""Names looked up at a time: one that hangs must not keep the others waiting for a thread."""
_NOT_DECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Body = TypeVar("_Body")


class NeuronError(Exception):
    pass


class NeuronUnreachable(NeuronError):
    pass


class NeuronGarbled(NeuronError):
    pass


class NeuronRefused(NeuronError):
    def __init__(self, status: int, error: protocol.ErrorDetail) -> None:
        hint = f" ({error.hint})" if error.hint else ""
        super().__init__(f"{error.message}{hint}")
        self.status = status
        self.code = error.code
        self.error = error


@dataclass(frozen=True, slots=True)
class NeuronAddress:
    """How to reach a neuron, and what is known of the process behind it."""

    id: int
    name: str
    endpoint: str
    token: str | None = None
    boot_id: str = ""


class NeuronClient:
    """Speaks to any number of neurons from one event loop."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def poll(self, neuron: NeuronAddress, asked_at: datetime) -> Report:
        """Read health and models; the hardware too if this is a new process. Raises NeuronError."""
        health, listed = await asyncio.gather(
            self._get(neuron, "/health", protocol.Health),
            self._get(neuron, "/models", protocol.ModelList),
        )
        if health.boot_id == neuron.boot_id:
            return Report(asked_at, health, listed.models)
        discovery, version = await asyncio.gather(
            self._get(neuron, "/discovery", protocol.Discovery),
            self._get(neuron, "/version", protocol.VersionInfo),
        )
        return Report(asked_at, health, listed.models, discovery, version)

    async def load(
        self, neuron: NeuronAddress, request: protocol.LoadRequest
    ) -> protocol.LoadAccepted:
        """Begin a load, or join the one going on. Raises NeuronError."""
        return await self._call("POST", neuron, "/models/load", protocol.LoadAccepted, request)

    async def unload(
        self, neuron: NeuronAddress, request: protocol.UnloadRequest
    ) -> protocol.LoadAccepted:
        """Begin an unload. Raises NeuronError: 409 `busy` if it should be idle and is not."""
        return await self._call("POST", neuron, "/models/unload", protocol.LoadAccepted, request)

    async def _get(self, neuron: NeuronAddress, path: str, kind: type[_Body]) -> _Body:
        return await self._call("GET", neuron, path, kind)

    async def _call(
        self,
        method: str,
        neuron: NeuronAddress,
        path: str,
        kind: type[_Body],
        body: object | None = None,
    ) -> _Body:
        headers = {"content-type": "application/json"} if body is not None else {}
        if neuron.token:
            headers["authorization"] = f"Bearer {neuron.token}"
        try:
            async with self._session.request(
                method,
                f"{neuron.endpoint}{path}",
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                allow_redirects=False,
            ) as response:
                content = await _read(response)
        except TimeoutError:
            raise NeuronUnreachable(f"no answer within {CALL_TIMEOUT_SECONDS:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NeuronUnreachable(str(error) or type(error).__name__) from None
        if response.status >= 300:
            raise _refusal(response.status, content, path)
        return _decode(content, kind, path)


class NeuronCalls:
    """Several calls at once for synchronous code, which does its own work between the answers.

    The event loop turns only inside `finished`: calls go on while their caller waits for them.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._tasks: dict[asyncio.Task[Any], Any] = {}

    def __enter__(self) -> Self:
        self._runner.get_loop().set_default_executor(_LookUps(_MAX_LOOK_UPS, "look-up"))
        self._session = self._runner.run(_open_session())
        self.client = NeuronClient(self._session)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._runner.run(_close(self._session, tuple(self._tasks)))
        finally:
            self._runner.close()

    def start(self, key: Any, call: Coroutine[Any, Any, Any]) -> None:
        """Begin a call. `key` comes back with its answer."""
        self._tasks[self._runner.get_loop().create_task(call)] = key

    @property
    def pending(self) -> tuple[Any, ...]:
        """The keys of the calls that have not come back."""
        return tuple(self._tasks.values())

    @property
    def num_pending(self) -> int:
        return len(self._tasks)

    def finished(self, timeout_seconds: float) -> list[tuple[Any, Any]]:
        """Wait until all calls are done or the time is over; return (key, answer or NeuronError).

        What is not done goes on. An error that is no NeuronError is raised: it is a bug.
        """
        if not self._tasks:
            return []
        done, _ = self._runner.run(_wait(tuple(self._tasks), timeout_seconds))
        answers = []
        for task in done:
            key = self._tasks.pop(task)
            error = task.exception()
            if error is not None and not isinstance(error, NeuronError):
                raise error
            answers.append((key, error or task.result()))
        return answers


class _LookUps(ThreadPoolExecutor):
    """The threads of the resolver. A loop that is closed waits for its executor to the end."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        # A look-up cannot be cut short, and takes as long as the host's resolver likes.
        super().shutdown(wait=False, cancel_futures=True)


async def _wait(
    tasks: tuple[asyncio.Task[Any], ...], timeout_seconds: float
) -> tuple[set[asyncio.Task[Any]], set[asyncio.Task[Any]]]:
    return await asyncio.wait(tasks, timeout=timeout_seconds)


async def _open_session() -> aiohttp.ClientSession:
    # `trust_env` stays off: a proxy of the host's has no business between Cortex and a neuron.
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS)
    return aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


async def _close(session: aiohttp.ClientSession, tasks: tuple[asyncio.Task[Any], ...]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await session.close()


async def _read(response: aiohttp.ClientResponse) -> bytes | bytearray:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > _BODY_LIMIT_BYTES:
            raise ValueError("the answer is too long to be a neuron's")
    # No text column of PostgreSQL takes a NUL: whatever wrote one, it is not worth a poll.
    return content.replace(b"\\u0000", b"\\ufffd")


def _decode(content: bytes | bytearray, kind: type[_Body], path: str) -> _Body:
    try:
        return msgspec.json.decode(content, type=kind)
    except _NOT_DECODABLE as error:
        raise NeuronGarbled(f"the answer to {path} is not a neuron's: {error}") from None


def _refusal(status: int, content: bytes | bytearray, path: str) -> NeuronError:
    try:
        body = msgspec.json.decode(content, type=protocol.ErrorBody)
    except _NOT_DECODABLE:
        return NeuronGarbled(f"{path} was answered with HTTP {status}, not as a neuron would")
    return NeuronRefused(status, body.error)
