"""Watches the fleet for a few seconds: polls every neuron, and makes a pass after each round.

While something is on the move it does so several times a second, so that a cold load is seen to
end when it ends. It decides nothing: passes do, in the controller. One watch at a time over all
workers, by a lease that a killed worker soon loses.
"""

import logging
import time
import uuid
from collections.abc import Callable

from django.conf import settings
from django.utils import timezone

from fleet import controller, selectors
from fleet.controller import Clock
from fleet.neuron_client import NeuronAddress, NeuronCalls, NeuronError
from fleet.notify import request_reconcile
from fleet.observation import Report
from fleet.services.lease import give_lease_back, take_lease
from fleet.services.observe import record_miss, record_report
from fleet.services.orders import Order
from neuron_agent.protocol import LoadAccepted

log = logging.getLogger(__name__)

WATCH_LEASE = "watch"
WATCH_LEASE_SECONDS = 3.0
"""Renewed in time. What a killed worker leaves undone is taken up after this at the latest."""
PASS_LEASE_SECONDS = 3.0
"""A watch holds it for its decisions only: the neurons' answers are waited for without it."""
ROUND_SECONDS = 0.25
LONGEST_WATCH_SECONDS = 4.0
LIMIT_SECONDS = 4.6
"""Calls that hang are waited for this long, over the end of the watch; no pass begins after it."""


def watch_fleet(clock: Clock = timezone.now, *, is_hurried: bool = False) -> bool:
    """Watch for one period; False if another watch is going on.

    That one sees what this one was started for: it looks again whether anything moves after it
    gave its lease back, and asks for another watch if so. Hence no wish falls between two.
    """
    holder = uuid.uuid4().hex
    if not take_lease(WATCH_LEASE, holder, clock(), WATCH_LEASE_SECONDS):
        return False
    try:
        with NeuronCalls() as calls:
            Watch(calls, clock, holder).run(is_hurried)
    finally:
        give_lease_back(WATCH_LEASE, holder, clock())
    if selectors.is_anything_moving(clock()):
        request_reconcile()
    return True


class Watch:
    """One watch: which calls are out, and when the next ones are due (monotonic seconds)."""

    def __init__(
        self,
        calls: NeuronCalls,
        clock: Clock,
        holder: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._holder = holder
        self._monotonic = monotonic
        self._began_at = monotonic()
        self._poll_at = self._lease_taken_at = self._began_at
        self._is_moving = True
        self._is_news = False
        self._told: set[tuple[int, int]] = set()

    def run(self, is_hurried: bool) -> None:
        """Go on while something moves, a period at most, and until every call was answered."""
        if is_hurried:
            self._pass()
        while self._keep_lease():
            round_ends_at = self._monotonic() + ROUND_SECONDS
            self._start_polls()
            self._collect(round_ends_at)
            if self._elapsed_seconds() >= LIMIT_SECONDS:
                return
            if self._is_news or self._is_moving:
                self._pass()
            self._is_moving = selectors.is_anything_moving(self._clock())
            if self._is_over():
                return
            self._rest_until(round_ends_at)

    def _keep_lease(self) -> bool:
        """Prolong the lease when half of it is over: rounds are many, and each would write."""
        if self._monotonic() - self._lease_taken_at < WATCH_LEASE_SECONDS / 2:
            return True
        self._lease_taken_at = self._monotonic()
        return take_lease(WATCH_LEASE, self._holder, self._clock(), WATCH_LEASE_SECONDS)

    def _is_over(self) -> bool:
        period_seconds = min(settings.CORTEX_POLL_SECONDS, LONGEST_WATCH_SECONDS)
        is_wanted = self._is_moving or self._is_news
        is_on = is_wanted and self._elapsed_seconds() < period_seconds
        return not is_on and self._calls.num_pending == 0

    def _elapsed_seconds(self) -> float:
        return self._monotonic() - self._began_at

    def _start_polls(self) -> None:
        now = self._monotonic()
        if now < self._poll_at and not self._is_moving:
            return
        self._poll_at = now + settings.CORTEX_POLL_SECONDS
        start_polls(self._calls, self._clock)

    def _collect(self, until: float) -> None:
        remaining_seconds = max(0.0, until - self._monotonic())
        if record_answers(self._calls, self._clock, remaining_seconds):
            self._is_news = True

    def _pass(self) -> None:
        """Make a pass. What came in stays news while another pass, which began earlier, goes on."""
        lease = controller.holding(controller.PASS_LEASE, self._clock, PASS_LEASE_SECONDS)
        with lease as is_held:
            if is_held:
                self._is_news = False
                controller.tell(self._calls, self._not_told(controller.decide(self._clock())))

    def _not_told(self, given: tuple[Order, ...]) -> tuple[Order, ...]:
        """Give an order again once in a watch, not in every round."""
        fresh = tuple(o for o in given if (o.placement_id, o.generation) not in self._told)
        self._told |= {(order.placement_id, order.generation) for order in fresh}
        return fresh

    def _rest_until(self, moment: float) -> None:
        self._collect(moment)  # orders just given go out now, not in the next round
        time.sleep(max(0.0, moment - self._monotonic()))


def start_polls(calls: NeuronCalls, clock: Clock) -> None:
    """Ask every neuron that has answered the last time it was asked."""
    pending = {key.id for key in calls.pending if isinstance(key, NeuronAddress)}
    for neuron in selectors.polled_neurons():
        if neuron.pk not in pending:
            address = controller.address_of(neuron)
            calls.start(address, calls.client.poll(address, clock()))


def record_answers(calls: NeuronCalls, clock: Clock, timeout_seconds: float) -> int:
    """Write down what came back, of polls and of orders, and return how many did."""
    answers = calls.finished(timeout_seconds)
    for key, answer in answers:
        if not isinstance(key, NeuronAddress):
            _record_answer(key, answer, clock)
        elif isinstance(answer, NeuronError):
            record_miss(key.id, str(answer), clock())
        else:
            _record_report(key, answer, clock)
    return len(answers)


def _record_answer(order: Order, answer: LoadAccepted | NeuronError, clock: Clock) -> None:
    try:
        controller.record_answer(order, answer, clock())
    except Exception:  # what cannot be written down of one must not keep others from being heard
        log.exception("The answer to %s cannot be stored: the order is given again", order)


def _record_report(neuron: NeuronAddress, report: Report, clock: Clock) -> None:
    try:
        record_report(neuron.id, report, clock())
    except Exception as error:  # one neuron's nonsense must not keep the others from being seen
        log.exception("The report of %s cannot be stored", neuron.name)
        record_miss(neuron.id, f"its report cannot be stored: {error}", clock())


def poll_once(calls: NeuronCalls, clock: Clock) -> None:
    """Ask every neuron once and wait for all of them."""
    start_polls(calls, clock)
    record_answers(calls, clock, LIMIT_SECONDS)
