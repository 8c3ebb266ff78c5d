"""What a caller of the services can have got wrong.

FleetError
  UnknownModel       no such row in the catalogue, nor an alias
  UnknownNeuron      no neuron of that name
  InvalidFleetChange what was asked for cannot be stored; the message says which field and why
"""


class FleetError(Exception):
    """The caller's fault; trying again does not help."""


class UnknownModel(FleetError):
    def __init__(self, model_id: str) -> None:
        super().__init__(f"There is no model {model_id!r} in the catalogue.")


class UnknownNeuron(FleetError):
    def __init__(self, name: str) -> None:
        super().__init__(f"There is no neuron {name!r}.")


class InvalidFleetChange(FleetError):
    pass
