"""Stands in for CUDA graphs where there is no GPU."""

from collections.abc import Callable

from torch import Tensor

from neuron_agent.engine.cuda.graphs import Captured


class EagerCapture:
    """Remembers the work and does it again at each replay, into the same output."""

    def __init__(self) -> None:
        self.num_replays = 0

    def __call__(self, work: Callable[[], Tensor]) -> Captured:
        output = work().clone()

        def replay() -> None:
            self.num_replays += 1
            output.copy_(work())

        return Captured(replay, output)
