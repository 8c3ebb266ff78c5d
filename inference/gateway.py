"""The gateway: takes requests, finds each a placement, carries the answer back, records it.

`Gateway.serve` is the table of contents. Nothing on its way asks the database or Redis while the
model is ready: what a request needs is in the fleet view. Decisions are in `dispatch`, bytes in
`wire`, the client in `client`, one neuron in `relay`, waiting in `cold_load`.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from dataclasses import dataclass, field

import msgspec
from django.conf import settings
from django.utils import timezone

from fleet.selectors import ServedModel
from inference import catalogue
from inference.client import JSON_HEADER, Client, ClientLeft
from inference.cold_load import ColdLoads
from inference.delivery import Delivery
from inference.dispatch.admission import Limits
from inference.fleet_port import DatabaseFleetPort, FleetPort
from inference.fleet_view import FleetView
from inference.intake import Intake
from inference.neuron_stream import NeuronConnections
from inference.recorder import Recorder
from inference.relay import Question
from inference.reply import reply_to
from inference.request_facts import CLIENT_LEFT, RequestFacts
from inference.running import RunningRequests
from inference.token_count import count_tokens
from inference.wire import anthropic
from inference.wire.dialect import Dialect, InferenceRequest, Operation
from inference.wire.errors import CortexError, InternalError, ModelNotFound

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    redis_url: str | None = None
    poll_seconds: float = 5.0
    urgent_poll_seconds: float = 1.0
    """While requests wait for a load."""
    flush_seconds: float = 1.0
    load_wait_seconds: float = 300.0
    max_wait_seconds: float = 60.0
    limits: Limits = field(default_factory=Limits)


class Gateway:
    """One per process. Belongs to the event loop."""

    def __init__(self, config: GatewayConfig, port: FleetPort) -> None:
        self.fleet = FleetView(
            port, config.poll_seconds, config.urgent_poll_seconds, config.max_wait_seconds
        )
        self.cold_loads = ColdLoads(self.fleet, port, config.limits)
        self.intake = Intake(config.limits)
        self.recorder = Recorder(port, config.flush_seconds)
        self.running = RunningRequests()
        self._connections = NeuronConnections()
        self._delivery = Delivery(
            self.fleet, self.cold_loads, self._connections, port, config.load_wait_seconds
        )
        self._config = config

    async def start(self) -> None:
        await self.fleet.start(self._config.redis_url)
        self.cold_loads.start()
        self.recorder.start()

    async def stop(self) -> None:
        """Nothing that was asked or recorded is lost: wishes are withdrawn, records written.

        All at once and not for long: whoever stops us kills those who do not stop in time.
        """
        await asyncio.gather(self.cold_loads.stop(), self.recorder.stop(), self._delivery.stop())
        await self.fleet.stop()
        self._connections.close()

    async def serve(self, client: Client, operation: Operation) -> None:
        """Answer one request, however it goes, and record it."""
        facts = _arrival(client, operation)
        try:
            with self.intake.place() as place, self.running.while_running(client):
                request = await self.intake.read(client, place, operation.parse_request)
                facts.requested_model, facts.streaming = request.model, request.stream
                async with client.watched():
                    model = self._find_model(request, facts)
                    with reply_to(client, operation, request, facts) as reply:
                        question = Question(operation.neuron_path, request, reply)
                        await self._delivery.deliver(question, model, facts)
        except ClientLeft:
            facts.status = facts.status or CLIENT_LEFT  # not if it has its whole answer
        except CortexError as error:
            await _fail(client, error, facts)
        except asyncio.CancelledError:
            if not client.has_ended:
                facts.status, facts.error_code = 503, "gateway_stopped"
            raise
        except Exception:  # a bug of ours: the client learns the request id, the log the rest
            log.exception("request %s failed", client.request_id)
            await _fail(client, InternalError(client.request_id), facts)
        finally:
            facts.ended = time.monotonic()
            self.recorder.add(facts)

    async def count_tokens(self, client: Client) -> None:
        """Answer how long a prompt would be. Raises CortexError, ClientLeft."""
        with self.intake.place() as place:
            wanted = await self.intake.read(client, place, anthropic.parse_count_request)
            model = self.fleet.find_model(wanted.model)
            if model is None:
                raise ModelNotFound(wanted.model)
            async with client.watched():
                count = await count_tokens(
                    self._connections, self.fleet, model, wanted.body, wanted.model
                )
                await client.answer(200, anthropic.encode_count(count), (JSON_HEADER,))

    async def cancel(self, client: Client, request_id: str) -> None:
        """End a running request of the same caller. Raises RequestNotFound."""
        self.running.cancel(request_id, client)
        cancelled = {"id": request_id, "object": "request", "cancelled": True}
        await _answer_json(client, 200, cancelled)

    async def list_models(self, client: Client, dialect: Dialect) -> None:
        """Raises InvalidRequest."""
        view = self.fleet.view
        if dialect is anthropic.DIALECT:
            listed = catalogue.anthropic_models(view, client.query)
        else:
            listed = catalogue.list_models(view)
        await _answer_json(client, 200, listed)

    async def show_model(self, client: Client, name: str, dialect: Dialect) -> None:
        """Raises ModelNotFound."""
        is_anthropic = dialect is anthropic.DIALECT
        find = catalogue.find_anthropic_model if is_anthropic else catalogue.find_entry
        entry = find(self.fleet.view, name)
        if entry is None:
            raise ModelNotFound(name)
        await _answer_json(client, 200, entry)

    async def show_health(self, client: Client) -> None:
        can_serve, health = catalogue.fleet_health(self.fleet.view, self.fleet.is_serving)
        await _answer_json(client, 200 if can_serve else 503, health)

    def check_integrity(self) -> None:
        """Raise AssertionError if any capacity was not given back. For when nothing runs."""
        self.fleet.check_integrity()
        self.cold_loads.check_integrity()
        self.intake.check_integrity()
        self.running.check_integrity()
        self._connections.check_integrity()

    def _find_model(self, request: InferenceRequest, facts: RequestFacts) -> ServedModel:
        model = self.fleet.find_model(request.model)
        if model is None:
            raise ModelNotFound(request.model)
        facts.model = model.model_id
        return model


def _arrival(client: Client, operation: Operation) -> RequestFacts:
    return RequestFacts(
        request_id=client.request_id,
        dialect=operation.name,
        arrived_at=timezone.now(),
        began=time.monotonic(),
        client_address=client.address,
        user_agent=client.header(b"user-agent"),
    )


async def _fail(client: Client, error: CortexError, facts: RequestFacts) -> None:
    if client.has_ended:  # what comes after the end changes nothing
        return
    facts.note_error(error)
    await client.fail(error, facts.headers)


async def _answer_json(client: Client, status: int, body: object) -> None:
    await client.answer(status, msgspec.json.encode(body), (JSON_HEADER,))


# --- the process's gateway -----------------------------------------------------------------------

_starting = asyncio.Lock()
_running: Gateway | None = None
_port: DatabaseFleetPort | None = None


def current() -> Gateway | None:
    """Return this process's gateway, None before `startup` and after `shutdown`."""
    return _running


async def startup() -> Gateway:
    """Start this process's gateway, unless it runs."""
    global _running, _port
    async with _starting:
        if _running is None:
            _port = DatabaseFleetPort(_source())
            gateway = Gateway(_config(), _port)
            await gateway.start()
            _running = gateway
        return _running


async def shutdown() -> None:
    """Stop this process's gateway, if it runs."""
    global _running, _port
    gateway, port, _running, _port = _running, _port, None, None
    if gateway is not None:
        await gateway.stop()
    if port is not None:
        port.close()


def _config() -> GatewayConfig:
    return GatewayConfig(
        redis_url=settings.REDIS_URL,
        load_wait_seconds=settings.CORTEX_LOAD_WAIT_SECONDS,
        max_wait_seconds=settings.CORTEX_MAX_WAIT_SECONDS,
    )


def _source() -> str:
    """Name this gateway, differently at each start, in the rows it writes."""
    return f"gateway {socket.gethostname()[:60]} {os.getpid()} {secrets.token_hex(4)}"
