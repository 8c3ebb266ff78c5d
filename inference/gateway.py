"""The gateway: takes chat requests, finds each a placement, carries the answer back, records it.

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
from math import inf

import msgspec
from django.conf import settings
from django.utils import timezone

from fleet.selectors import ServedModel, ServedPlacement
from inference import catalogue, relay
from inference.client import JSON_HEADER, Client, ClientLeft
from inference.cold_load import ColdLoads, Tell
from inference.dispatch.admission import Limits
from inference.dispatch.choose import pick_placement
from inference.dispatch.failover import Attempts, NextStep, TransportFailure
from inference.fleet_port import DatabaseFleetPort, FleetPort
from inference.fleet_view import FleetView
from inference.intake import Intake
from inference.neuron_stream import NeuronConnections
from inference.recorder import Recorder
from inference.relay import NotServed
from inference.request_facts import CLIENT_LEFT, RequestFacts
from inference.wire import openai_chat, sse
from inference.wire.errors import CortexError, InternalError, ModelNotFound
from inference.wire.openai_chat import ChatRequest

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0


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
        self._connections = NeuronConnections()
        self._config = config
        self._port = port
        self._reports: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self.fleet.start(self._config.redis_url)
        self.cold_loads.start()
        self.recorder.start()

    async def stop(self) -> None:
        """Nothing that was asked or recorded is lost: wishes are withdrawn, records written.

        All at once and not for long: whoever stops us kills those who do not stop in time.
        """
        await asyncio.gather(self.cold_loads.stop(), self.recorder.stop(), self._finish_reports())
        await self.fleet.stop()
        self._connections.close()

    async def serve(self, client: Client) -> None:
        """Answer one chat request, however it goes, and record it."""
        facts = _arrival(client)
        try:
            with self.intake.place() as place:
                request = await self.intake.read(client, place)
                facts.requested_model, facts.streaming = request.model, request.stream
                async with client.watched():
                    model = self._find_model(request, facts)
                    await self._answer(client, request, model, facts)
        except ClientLeft:
            facts.status = facts.status or CLIENT_LEFT  # not if it has its whole answer
        except CortexError as error:
            await _fail(client, error, facts)
        except asyncio.CancelledError:
            facts.status, facts.error_code = 503, "gateway_stopped"
            raise
        except Exception:  # a bug of ours: the client learns the request id, the log the rest
            log.exception("request %s failed", client.request_id)
            await _fail(client, InternalError(client.request_id), facts)
        finally:
            self.recorder.add(facts.record(time.monotonic()))

    async def list_models(self, client: Client) -> None:
        await _answer_json(client, 200, catalogue.list_models(self.fleet.view))

    async def show_model(self, client: Client, name: str) -> None:
        entry = catalogue.find_entry(self.fleet.view, name)
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
        self._connections.check_integrity()

    def _find_model(self, request: ChatRequest, facts: RequestFacts) -> ServedModel:
        model = self.fleet.find_model(request.model)
        if model is None:
            raise ModelNotFound(request.model)
        facts.model = model.model_id
        return model

    async def _answer(
        self, client: Client, request: ChatRequest, model: ServedModel, facts: RequestFacts
    ) -> None:
        """Try placements until one answers; wait for one where there is none."""
        attempts = Attempts()
        while True:
            placement = self._pick(model.model_id, attempts)
            if placement is None:
                if attempts.error is not None:
                    raise attempts.error
                placement = await self._wait_for_load(client, request, attempts, facts)
            try:
                await self._deliver(client, request, placement, facts)
                return
            except NotServed as failure:
                self._note_failure(placement, failure)
                attempts.note(placement.id, failure.next_step, failure.error, time.monotonic())

    def _pick(self, model_id: str, attempts: Attempts) -> ServedPlacement | None:
        candidates = self.fleet.candidates(model_id)
        placement_id = pick_placement(candidates, attempts.excluded(time.monotonic()))
        return None if placement_id is None else self.fleet.placement(model_id, placement_id)

    async def _deliver(
        self, client: Client, request: ChatRequest, placement: ServedPlacement, facts: RequestFacts
    ) -> None:
        neuron = self.fleet.view.neurons[placement.neuron_id]
        facts.note_attempt(placement, neuron)
        with self.fleet.sending_to(placement):
            await relay.deliver(self._connections, neuron, request, client, facts)
        self.fleet.note_answer(placement)

    async def _wait_for_load(
        self, client: Client, request: ChatRequest, attempts: Attempts, facts: RequestFacts
    ) -> ServedPlacement:
        self.cold_loads.check_hope(facts.model)
        facts.cold_start = True
        facts.neuron, facts.placement_id = "", None
        began = time.monotonic()
        if facts.wait_deadline is None:  # one for all the waits of a request
            patience_seconds = inf if request.stream else self._config.load_wait_seconds
            facts.wait_deadline = began + patience_seconds
        try:
            return await self.cold_loads.wait(
                facts.model,
                len(request.body),
                lambda: self._pick(facts.model, attempts),
                _teller(client, facts) if request.stream else None,
                facts.wait_deadline,
            )
        finally:
            waited_seconds = time.monotonic() - began
            facts.load_wait_seconds = (facts.load_wait_seconds or 0.0) + waited_seconds

    def _note_failure(self, placement: ServedPlacement, failure: NotServed) -> None:
        """Remember it here at once; of a refused connection tell everyone."""
        if failure.failure is None:
            self.fleet.note_answer(placement)
            if failure.next_step is NextStep.WAIT_FOR_LOAD:  # our view is behind
                self.fleet.refresh_soon()
            return
        is_news = self.fleet.note_failure(placement, failure.failure)
        if is_news and failure.failure is TransportFailure.REFUSED:
            task = asyncio.get_running_loop().create_task(self._report(placement.neuron_id))
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)

    async def _report(self, neuron_id: int) -> None:
        try:
            await self._port.report_unreachable(neuron_id, "connection refused")
        except Exception as error:  # polls find out by themselves
            log.warning("An unreachable neuron could not be reported: %s", error)
        self.fleet.refresh_soon()

    async def _finish_reports(self) -> None:
        if self._reports:
            await asyncio.wait(self._reports, timeout=STOP_SECONDS)


def _arrival(client: Client) -> RequestFacts:
    return RequestFacts(
        request_id=client.request_id,
        dialect=openai_chat.DIALECT,
        arrived_at=timezone.now(),
        began=time.monotonic(),
        client_address=client.address,
        user_agent=client.header(b"user-agent"),
    )


def _teller(client: Client, facts: RequestFacts) -> Tell:
    """Say how a load goes in a comment: every client of a stream ignores it."""

    async def tell(progress: dict[str, object]) -> None:
        await client.begin_stream(facts.headers)
        await client.write(sse.comment("cortex-loading", progress))

    return tell


async def _fail(client: Client, error: CortexError, facts: RequestFacts) -> None:
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
