"""Finds a placement that answers a question: picks, waits for a load, goes elsewhere, gives up.

Decisions are in `dispatch`, waiting in `cold_load`, one neuron in `relay`; here they are tied
together. It knows no dialect, and of the client only that it has a reply coming.
"""

import asyncio
import logging
import time
from math import inf

from fleet.selectors import ServedModel, ServedPlacement
from inference import relay
from inference.cold_load import ColdLoads
from inference.dispatch.choose import pick_placement
from inference.dispatch.failover import Attempts, NextStep, TransportFailure
from inference.event_stream import queued
from inference.fleet_port import FleetPort
from inference.fleet_view import FleetView
from inference.neuron_stream import NeuronConnections
from inference.relay import NotServed, Question
from inference.request_facts import RequestFacts

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0


class Delivery:
    """One per gateway. Belongs to the event loop."""

    def __init__(
        self,
        fleet: FleetView,
        cold_loads: ColdLoads,
        connections: NeuronConnections,
        port: FleetPort,
        load_wait_seconds: float,
    ) -> None:
        self._fleet = fleet
        self._cold_loads = cold_loads
        self._connections = connections
        self._port = port
        self._load_wait_seconds = load_wait_seconds
        self._reports: set[asyncio.Task[None]] = set()

    async def deliver(self, question: Question, model: ServedModel, facts: RequestFacts) -> None:
        """Try placements until one answers; wait for one where there is none.

        Raises CortexError.
        """
        attempts = Attempts()
        while True:
            placement = self._pick(model.model_id, attempts)
            if placement is None:
                if attempts.error is not None:
                    raise attempts.error
                placement = await self._wait_for_load(question, attempts, facts)
            try:
                await self._ask(question, placement, facts)
                return
            except NotServed as failure:
                self._note_failure(placement, failure)
                attempts.note(placement.id, failure.next_step, failure.error, time.monotonic())

    async def stop(self) -> None:
        """Finish telling of neurons that do not answer."""
        if self._reports:
            await asyncio.wait(self._reports, timeout=STOP_SECONDS)

    def _pick(self, model_id: str, attempts: Attempts) -> ServedPlacement | None:
        candidates = self._fleet.candidates(model_id)
        placement_id = pick_placement(candidates, attempts.excluded(time.monotonic()))
        return None if placement_id is None else self._fleet.placement(model_id, placement_id)

    async def _ask(
        self, question: Question, placement: ServedPlacement, facts: RequestFacts
    ) -> None:
        neuron = self._fleet.view.neurons[placement.neuron_id]
        facts.note_attempt(placement, neuron)
        question.reply.show(queued)
        with self._fleet.sending_to(placement):
            await relay.deliver(self._connections, neuron, question, facts)
        self._fleet.note_answer(placement)

    async def _wait_for_load(
        self, question: Question, attempts: Attempts, facts: RequestFacts
    ) -> ServedPlacement:
        self._cold_loads.check_hope(facts.model)
        facts.cold_start = True
        facts.neuron, facts.placement_id = "", None
        began = time.monotonic()
        if facts.wait_deadline is None:  # one for all the waits of a request
            patience_seconds = inf if question.request.stream else self._load_wait_seconds
            facts.wait_deadline = began + patience_seconds
        try:
            return await self._cold_loads.wait(
                facts.model,
                len(question.request.body),
                lambda: self._pick(facts.model, attempts),
                question.reply.show,
                facts.wait_deadline,
            )
        finally:
            waited_seconds = time.monotonic() - began
            facts.load_wait_seconds = (facts.load_wait_seconds or 0.0) + waited_seconds

    def _note_failure(self, placement: ServedPlacement, failure: NotServed) -> None:
        """Remember it here at once; of a refused connection tell everyone."""
        if failure.failure is None:
            self._fleet.note_answer(placement)
            if failure.next_step is NextStep.WAIT_FOR_LOAD:  # our view is behind
                self._fleet.refresh_soon()
            return
        is_news = self._fleet.note_failure(placement, failure.failure)
        if is_news and failure.failure is TransportFailure.REFUSED:
            task = asyncio.get_running_loop().create_task(self._report(placement.neuron_id))
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)

    async def _report(self, neuron_id: int) -> None:
        try:
            await self._port.report_unreachable(neuron_id, "connection refused")
        except Exception as error:  # polls find out by themselves
            log.warning("An unreachable neuron could not be reported: %s", error)
        self._fleet.refresh_soon()
