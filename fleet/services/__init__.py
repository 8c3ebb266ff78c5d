"""Every write to the fleet: transactions, compare-and-set, and a FleetEvent for what changed.

The topics are modules of this package; callers import from here.
"""

from fleet.notify import FLEET_CHANNEL, publish_fleet_changed, request_reconcile
from fleet.services.catalogue import (
    profile_pins_changed,
    register_profile,
    remove_alias,
    remove_profile,
    request_load,
    request_unload,
    request_unload_of,
    save_alias,
    save_profile,
)
from fleet.services.demand import (
    find_profile,
    is_operator,
    renew_demand,
    request_placement,
    withdraw_demand,
)
from fleet.services.errors import FleetError, InvalidFleetChange, UnknownModel, UnknownNeuron
from fleet.services.neurons import (
    add_neuron,
    change_endpoint,
    cordon,
    drain,
    enrol_neuron,
    find_neuron,
    remove_neuron,
    report_unreachable,
    set_enabled,
    set_neuron_token,
    uncordon,
)
from fleet.services.usage import note_used

__all__ = [
    "FLEET_CHANNEL",
    "FleetError",
    "InvalidFleetChange",
    "UnknownModel",
    "UnknownNeuron",
    "add_neuron",
    "change_endpoint",
    "cordon",
    "drain",
    "enrol_neuron",
    "find_neuron",
    "find_profile",
    "is_operator",
    "note_used",
    "profile_pins_changed",
    "publish_fleet_changed",
    "register_profile",
    "remove_alias",
    "remove_neuron",
    "remove_profile",
    "renew_demand",
    "report_unreachable",
    "request_load",
    "request_placement",
    "request_reconcile",
    "request_unload",
    "request_unload_of",
    "save_alias",
    "save_profile",
    "set_enabled",
    "set_neuron_token",
    "uncordon",
    "withdraw_demand",
]
