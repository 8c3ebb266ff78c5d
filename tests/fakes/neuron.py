"""A fake neuron: a real HTTP server that speaks a neuron's REST and streams words without a model.

    with FakeNeuron(device_memory_mb=(8000,)) as neuron:
        neuron.place("org/model")
        neuron.knobs.token_delay_seconds = 0.01
        ... neuron.url ...
        assert neuron.aborted_requests == 1

Knobs may be turned from the test's thread while it runs; they take effect within milliseconds.
What happened can be read from the attributes of the neuron. It knows no torch and no Django.
"""

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from neuron_agent import protocol
from neuron_agent.protocol import ErrorCode, ErrorDetail, ModelPhase
from tests.fakes.http_server import HOST, Exchange, HttpServer
from tests.fakes.neuron_chat import ChatRequest, count_prompt, stream_reply, whole_reply
from tests.fakes.neuron_knobs import Knobs, Refusal, until
from tests.fakes.neuron_models import FakeModel, FakeModels

__all__ = ["FakeNeuron", "Knobs", "ReceivedRequest", "Refusal"]

_Body = TypeVar("_Body")


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request as it came in, before anything was made of it. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeNeuron:
    """See the module's docstring. Inside, all state belongs to the server's thread."""

    def __init__(
        self, device_memory_mb: tuple[int, ...] = (24_000,), token: str | None = None
    ) -> None:
        self.knobs = Knobs(device_memory_mb=device_memory_mb, token=token)
        self.boot_id = uuid.uuid4().hex
        self.requests: list[ReceivedRequest] = []
        self.aborted_requests = 0
        """Chat requests whose connection ended before their answer was complete."""
        self.max_in_flight = 0
        self._models = FakeModels(self.knobs)
        self._started_at = time.monotonic()
        self._server = HttpServer(self._handle)
        self.url = f"http://{HOST}:{self._server.port}"

    # --- what a test does ----------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()

    def start(self) -> None:
        """Open the port again after `stop`; models and boot id are as they were."""
        self._server.start()

    def stop(self) -> None:
        """Close the port: connections break, new ones are refused. Models stay."""
        self._server.stop()

    def restart(self) -> None:
        """Come back as a new process would: connections break, models and boot id are gone."""
        self._server.stop()
        self._server.run(self._forget())
        self._server.start()

    def place(self, model_id: str, devices: tuple[int, ...] = (0,)) -> None:
        """Make a model ready at once, as if it had been loaded before the test began."""

        async def placing() -> None:
            options = protocol.LoadRequest(model_id, tensor_parallel=len(devices))
            self._models.place(options, devices)

        self._server.run(placing())

    def phase_of(self, model_id: str) -> ModelPhase | None:
        """Return the phase of a model, None if it is not here."""
        model = self._models.get(model_id)
        return None if model is None else model.info.phase

    @property
    def in_flight(self) -> int:
        """Chat requests being answered now."""
        return sum(len(model.running) for model in self._models.all())

    @property
    def num_loads(self) -> Counter[str]:
        """Loads begun since the start, by model: a load that was joined counts once."""
        return self._models.num_loads

    @property
    def num_unloads(self) -> Counter[str]:
        return self._models.num_unloads

    def requests_to(self, path: str) -> list[ReceivedRequest]:
        return [request for request in tuple(self.requests) if request.path == path]

    # --- routing -------------------------------------------------------------------------------

    async def _handle(self, exchange: Exchange) -> None:
        self.requests.append(
            ReceivedRequest(exchange.method, exchange.path, exchange.headers, exchange.body)
        )
        await until(lambda: not self.knobs.hang)
        if self.knobs.drop_connection_before_head:
            exchange.drop()
            return
        try:
            self._authorise(exchange)
            await self._route(exchange)
        except Refusal as refusal:
            _refuse(exchange, refusal)

    def _authorise(self, exchange: Exchange) -> None:
        expected = self.knobs.token
        if expected is not None and exchange.headers.get("authorization") != f"Bearer {expected}":
            raise Refusal(401, ErrorCode.UNAUTHORIZED, "missing or wrong token")

    async def _route(self, exchange: Exchange) -> None:
        match exchange.method, exchange.path.partition("?")[0]:
            case "GET", "/version":
                _answer(exchange, protocol.VersionInfo(version="fake", boot_id=self.boot_id))
            case "GET", "/discovery":
                _answer(exchange, self._discovery())
            case "GET", "/health":
                _answer(exchange, self._health())
            case "GET", "/models":
                infos = tuple(self._current_info(model) for model in self._models.all())
                _answer(exchange, protocol.ModelList(models=infos))
            case "GET", "/v1/models":
                _answer(exchange, self._openai_models())
            case "POST", "/models/load":
                model = await self._models.load(_parse(exchange, protocol.LoadRequest))
                _accept(exchange, model)
            case "POST", "/models/unload":
                _accept(exchange, self._models.unload(_parse(exchange, protocol.UnloadRequest)))
            case "POST", "/v1/chat/completions":
                await self._chat(exchange, _parse(exchange, ChatRequest))
            case "POST", "/tokenize":
                _answer(exchange, self._token_count(_parse(exchange, ChatRequest)))
            case "GET", path if path.startswith("/models/") and path.endswith("/endpoint"):
                self._models.find(path.removeprefix("/models/").removesuffix("/endpoint"))
                _answer(exchange, {"url": self.url})
            case _, path:
                raise Refusal(404, ErrorCode.INVALID_REQUEST, f"no such path: {path}")

    # --- what it says of itself ----------------------------------------------------------------

    def _discovery(self) -> protocol.Discovery:
        devices = tuple(
            protocol.DeviceFacts(index, f"Fake device {index}", self.knobs.device_kind, memory_mb)
            for index, memory_mb in enumerate(self.knobs.device_memory_mb)
        )
        return protocol.Discovery(
            self.boot_id, "fake-host", "linux", "6.0", devices=devices, harnesses=("torch",)
        )

    def _health(self) -> protocol.Health:
        return protocol.Health(
            boot_id=self.boot_id,
            uptime_seconds=time.monotonic() - self._started_at,
            devices=tuple(
                self._device_health(index) for index in range(len(self.knobs.device_memory_mb))
            ),
            models=tuple(self._model_health(model) for model in self._models.all()),
            lifecycle_cycles=self.num_loads.total() + self.num_unloads.total(),
        )

    def _device_health(self, index: int) -> protocol.DeviceHealth:
        free_mb = self._models.free_mb(index)
        return protocol.DeviceHealth(
            index=index,
            vram_used_mb=self.knobs.device_memory_mb[index] - free_mb,
            vram_free_mb=free_mb,
            poisoned=index in self.knobs.poisoned_devices,
        )

    def _model_health(self, model: FakeModel) -> protocol.ModelHealth:
        return protocol.ModelHealth(
            id=model.info.id,
            in_flight=len(model.running),
            queue_depth=0,
            max_in_flight=self.knobs.max_in_flight,
            max_queue_depth=0,
        )

    def _openai_models(self) -> dict[str, object]:
        entry = {"object": "model", "created": 0, "owned_by": "fake"}
        data = [
            {"id": model.info.id, **entry}
            for model in self._models.all()
            if model.info.phase is ModelPhase.READY
        ]
        return {"object": "list", "data": data}

    def _current_info(self, model: FakeModel) -> protocol.ModelInfo:
        if model.info.phase is ModelPhase.READY and self._is_poisoned(model):
            return replace(model.info, phase=ModelPhase.RECOVERING)
        return model.info

    def _is_poisoned(self, model: FakeModel) -> bool:
        return not self.knobs.poisoned_devices.isdisjoint(model.info.devices)

    def _token_count(self, request: ChatRequest) -> dict[str, object]:
        """Count as chat does, loaded or not; the ids are not told."""
        if self.knobs.refuse_tokenize is not None:
            raise self.knobs.refuse_tokenize
        model = self._models.get(request.model)
        limit = model.info.limit if model else None
        return {
            "count": count_prompt(request.messages),
            "max_model_len": limit.context if limit else None,
        }

    # --- chat ----------------------------------------------------------------------------------

    async def _chat(self, exchange: Exchange, request: ChatRequest) -> None:
        if self.knobs.fail_before_first_byte is not None:
            raise self.knobs.fail_before_first_byte
        running = self._admit(request.model).running
        running.add(exchange)
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            reply = stream_reply if request.stream else whole_reply
            await reply(exchange, request, self.knobs)
        except asyncio.CancelledError:
            self.aborted_requests += 1
            raise
        finally:
            running.discard(exchange)

    def _admit(self, model_id: str) -> FakeModel:
        """Return the model that may answer. Raises Refusal, as a neuron would word it."""
        model = self._models.find(model_id)
        if self._is_poisoned(model):
            raise Refusal(503, ErrorCode.DEVICE_FAULT, "the device is poisoned", retry_after=1)
        if model.info.phase is ModelPhase.LOADING:
            raise Refusal(503, ErrorCode.MODEL_LOADING, f"{model_id} is loading", retry_after=1)
        if model.info.phase is not ModelPhase.READY:
            message = f"{model_id} is {model.info.phase}"
            raise Refusal(503, ErrorCode.MODEL_NOT_LOADED, message, retry_after=1)
        if len(model.running) >= self.knobs.max_in_flight:
            raise Refusal(429, ErrorCode.SATURATED, f"{model_id} is saturated", retry_after=1)
        return model

    async def _forget(self) -> None:
        self._models.forget()
        self.boot_id = uuid.uuid4().hex
        self._started_at = time.monotonic()


def _parse(exchange: Exchange, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(exchange.body, type=kind)
    except msgspec.DecodeError as error:
        raise Refusal(400, ErrorCode.INVALID_REQUEST, str(error)) from error


def _answer(exchange: Exchange, body: object, status: int = 200) -> None:
    exchange.answer(status, msgspec.json.encode(body))


def _accept(exchange: Exchange, model: FakeModel) -> None:
    status = 200 if model.info.phase is ModelPhase.READY else 202
    _answer(exchange, protocol.LoadAccepted(model.info.id, model.info.phase), status)


def _refuse(exchange: Exchange, refusal: Refusal) -> None:
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    detail = ErrorDetail(
        message=refusal.message,
        type=kind,
        code=refusal.code,
        needed_mb=refusal.needed_mb,
        free_mb=refusal.free_mb,
    )
    retry = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    exchange.answer(refusal.status, msgspec.json.encode(protocol.ErrorBody(detail)), retry)
