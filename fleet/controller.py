"""One pass: snapshot -> plan -> rows -> orders to neurons. The only caller of plan().

It decides nothing itself and keeps nothing between passes. A pass that is cut off anywhere is
made good by the next one, which goes on from the rows.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import assert_never

from fleet import selectors
from fleet.models import Neuron, Placement
from fleet.neuron_client import (
    NeuronAddress,
    NeuronCalls,
    NeuronError,
    NeuronRefused,
)
from fleet.planner.actions import Action, Fail, Hold, Load, MarkLost, Refuse, Unload
from fleet.planner.phases import PLACEMENT_MOVES, PlacementPhase
from fleet.planner.reconcile import plan
from fleet.services import demand, orders
from fleet.services.failures import Failure, fail_placement
from fleet.services.lease import give_lease_back, take_lease
from fleet.services.moves import move_placement
from fleet.services.orders import LoadOrder, Order, UnloadOrder
from fleet.token_vault import decrypt_token
from neuron_agent.protocol import ErrorCode, LoadAccepted, ModelPhase

PASS_LEASE = "pass"
LEASE_SECONDS = 10.0
_ANSWER_LIMIT_SECONDS = 5.0

Clock = Callable[[], datetime]


def run_once(calls: NeuronCalls, clock: Clock) -> tuple[Action, ...] | None:
    """Make one pass and wait for the neurons' answers.

    Return what was decided; None if another pass was going on, which then sees it all.
    """
    with holding(PASS_LEASE, clock, LEASE_SECONDS) as is_held:
        if not is_held:
            return None
        planned = preview(clock())
        tell(calls, carry_out(planned, clock()))
        for order, answer in calls.finished(_ANSWER_LIMIT_SECONDS):
            record_answer(order, answer, clock())
        return planned


@contextmanager
def holding(name: str, clock: Clock, seconds: float) -> Iterator[bool]:
    """Hold a lease for a block; yields whether it was got. A killed holder's ends by itself."""
    holder = uuid.uuid4().hex
    is_held = take_lease(name, holder, clock(), seconds)
    try:
        yield is_held
    finally:
        if is_held:
            give_lease_back(name, holder, clock())


def preview(now: datetime) -> tuple[Action, ...]:
    """What a pass would do now."""
    return plan(selectors.fleet_snapshot(now))


def decide(now: datetime) -> tuple[Order, ...]:
    """Plan, write the plan down, and return what neurons must be told."""
    return carry_out(preview(now), now)


def carry_out(planned: tuple[Action, ...], now: datetime) -> tuple[Order, ...]:
    """Write a plan down; return its orders, and those nobody is known to have given."""
    begun = [begin(action, now) for action in planned]
    demand.settle_demands(now)
    return (*(order for order in begun if order), *orders.unfinished_orders(now))


def begin(action: Action, now: datetime) -> Order | None:
    """Write an action's beginning down; its order for a neuron, if there is one."""
    match action:
        case Load():
            return orders.begin_load(action, now)
        case Unload():
            return orders.begin_unload(action, now)
        case Hold() | Refuse():
            demand.record_verdict(action, now)
        case Fail(placement_id, reason):
            return _fail_stalled(placement_id, reason, now)
        case MarkLost(placement_id, reason):
            _mark_lost(placement_id, reason, now)
        case _:
            assert_never(action)
    return None


def tell(calls: NeuronCalls, given: tuple[Order, ...]) -> None:
    """Begin the calls, all at once: a slow neuron delays no other."""
    neurons = Neuron.objects.in_bulk({order.neuron_id for order in given})
    for order in given:
        neuron = address_of(neurons[order.neuron_id])
        match order:
            case LoadOrder():
                calls.start(order, calls.client.load(neuron, order.request))
            case UnloadOrder():
                calls.start(order, calls.client.unload(neuron, order.request))
            case _:
                assert_never(order)


def record_answer(order: Order, answer: LoadAccepted | NeuronError, now: datetime) -> bool:
    """Write a neuron's answer down; False if its placement has moved on since."""
    match order:
        case LoadOrder():
            if isinstance(answer, NeuronError):
                return orders.load_refused(order, failure_of(answer), now)
            return orders.load_accepted(order, now)
        case UnloadOrder():
            return _record_unload(order, answer, now)
        case _:
            assert_never(order)


def _record_unload(order: UnloadOrder, answer: LoadAccepted | NeuronError, now: datetime) -> bool:
    if isinstance(answer, LoadAccepted):
        return orders.unload_accepted(order, answer.phase is ModelPhase.DRAINING, now)
    if isinstance(answer, NeuronRefused) and answer.code == ErrorCode.BUSY:
        return orders.unload_refused_busy(order, str(answer), now)
    if isinstance(answer, NeuronRefused) and answer.status == 404:
        return orders.unload_found_nothing(order, now)
    return False  # it stays as it is, and the order is given again


def failure_of(error: NeuronError) -> Failure:
    if isinstance(error, NeuronRefused):
        told = error.error
        return Failure(told.code, told.message, told.hint, told.needed_mb, told.free_mb)
    return Failure("neuron_unreachable", str(error))


def address_of(neuron: Neuron) -> NeuronAddress:
    token = decrypt_token(neuron.token_encrypted)
    return NeuronAddress(neuron.pk, neuron.name, neuron.endpoint, token, neuron.boot_id)


def _fail_stalled(placement_id: int, reason: str, now: datetime) -> Order | None:
    """The neuron must give it up too, or its next report would bring the load back."""
    placement = _find(placement_id)
    if placement is None or not _may_become(placement, PlacementPhase.FAILED):
        return None
    if not fail_placement(placement, Failure("load_stalled", reason), now):
        return None
    return orders.unload_order(placement, only_if_idle=False)


def _mark_lost(placement_id: int, reason: str, now: datetime) -> None:
    placement = _find(placement_id)
    if placement and _may_become(placement, PlacementPhase.LOST):
        changes = {"in_flight": 0, "queued": 0}
        move_placement(placement, PlacementPhase.LOST, reason, now, changes=changes)


def _may_become(placement: Placement, phase: PlacementPhase) -> bool:
    return phase in PLACEMENT_MOVES[PlacementPhase(placement.phase)]


def _find(placement_id: int) -> Placement | None:
    return Placement.objects.select_related("profile", "neuron").filter(pk=placement_id).first()
