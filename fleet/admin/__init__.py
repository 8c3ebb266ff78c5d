"""The fleet in the admin site. Pages read rows; what an operator does goes through services."""

from fleet.admin.catalogue import AliasAdmin, ModelProfileAdmin
from fleet.admin.neurons import NeuronAdmin
from fleet.admin.records import DemandAdmin, FleetEventAdmin, PlacementAdmin

__all__ = [
    "AliasAdmin",
    "DemandAdmin",
    "FleetEventAdmin",
    "ModelProfileAdmin",
    "NeuronAdmin",
    "PlacementAdmin",
]
