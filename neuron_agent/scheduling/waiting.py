"""The line of those who wait to be admitted, fair between principals.

Next is the oldest request of the principal with the fewest running; within a principal nobody
overtakes. Callers without a name are one principal. Requests that were preempted come before all.

Nobody starves: whoever leads its principal's line is passed over by younger requests at most
`PATIENCE` times; then the oldest of the impatient is next. So every leader is admitted after
finitely many others, and everybody becomes a leader.

It knows no cache and no clock: older means added earlier.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from neuron_agent.scheduling.request import Request

PATIENCE = 16


@dataclass(slots=True)
class _Line:
    """The waiting requests of one principal, with the order of their arrival; never empty."""

    requests: deque[tuple[int, Request]] = field(default_factory=deque)
    num_passed: int = 0
    """How often a younger request of another principal was admitted before the leader."""

    @property
    def arrival(self) -> int:
        return self.requests[0][0]


class WaitingLine:
    def __init__(self) -> None:
        self._arrivals = count()
        self._preempted: deque[Request] = deque()
        self._lines: dict[str, _Line] = {}

    def __len__(self) -> int:
        return len(self._preempted) + sum(len(line.requests) for line in self._lines.values())

    def __bool__(self) -> bool:
        return bool(self._preempted or self._lines)

    def __iter__(self) -> Iterator[Request]:
        yield from self._preempted
        for line in self._lines.values():
            yield from (request for _, request in line.requests)

    def add(self, request: Request) -> None:
        line = self._lines.setdefault(request.principal, _Line())
        line.requests.append((next(self._arrivals), request))

    def put_back(self, request: Request) -> None:
        """Let a preempted request be the next one."""
        self._preempted.appendleft(request)

    def choose(self, num_running: Mapping[str, int]) -> Request:
        """Return who is next, given how many of each principal are running."""
        if self._preempted:
            return self._preempted[0]
        impatient = [line for line in self._lines.values() if line.num_passed >= PATIENCE]
        if impatient:
            return min(impatient, key=lambda line: line.arrival).requests[0][1]

        def place_in_line(principal: str) -> tuple[int, int]:
            return num_running.get(principal, 0), self._lines[principal].arrival

        return self._lines[min(self._lines, key=place_in_line)].requests[0][1]

    def take(self, request: Request) -> None:
        """Take out who was chosen, and remember whom it has overtaken."""
        if self._preempted and self._preempted[0] is request:
            self._preempted.popleft()
            return
        line = self._lines[request.principal]
        arrival, _ = line.requests.popleft()
        line.num_passed = 0
        if not line.requests:
            del self._lines[request.principal]
        for other in self._lines.values():
            other.num_passed += other.arrival < arrival

    def remove(self, request: Request) -> None:
        """Take a request out wherever it stands."""
        if request in self._preempted:
            self._preempted.remove(request)
            return
        line = self._lines[request.principal]
        was_leading = line.requests[0][1] is request
        line.requests = deque(entry for entry in line.requests if entry[1] is not request)
        if was_leading:
            line.num_passed = 0
        if not line.requests:
            del self._lines[request.principal]
