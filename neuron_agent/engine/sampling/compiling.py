"""Requests that wait for their grammar, outside the schedule, so that nobody waits with them.

It lives on the device thread and reads no clock. What a compilation is, is `grammar`'s business.
"""

import concurrent.futures
from concurrent.futures import Future
from dataclasses import dataclass

from neuron_agent.engine.sampling.grammar import Compiled, GrammarCompiler, GrammarRefused
from neuron_agent.engine.sampling.row_state import RowState
from neuron_agent.scheduling.request import Request

PATIENCE_SECONDS = 10.0
"""Compiling takes milliseconds, a large vocabulary's first time most of a second."""
TOO_LONG = "the grammar takes too long to compile"


@dataclass(frozen=True, slots=True)
class Entry:
    request: Request
    state: RowState
    grammar: str
    result: "Future[Compiled]"
    since: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A request whose grammar cannot be used."""

    request: Request
    why: str
    is_fault: bool = False
    """It is ours, not the caller's."""


class CompilingRequests:
    def __init__(self, compiler: GrammarCompiler | None) -> None:
        self._compiler = compiler
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, request: Request, state: RowState, grammar: str, now: float) -> None:
        """Let a request wait. Raises GrammarRefused if there is no point in it."""
        if self._compiler is None:
            raise GrammarRefused("this model has no tokenizer to follow a grammar with")
        result = self._compiler.start(grammar)
        self._entries[request.request_id] = Entry(request, state, grammar, result, now)

    def cancel(self, request_id: str) -> Request | None:
        """Take a request out; the compilation goes on, for whoever asks next."""
        entry = self._entries.pop(request_id, None)
        return entry.request if entry else None

    def settle(self, now: float) -> list[Entry | Refused]:
        """Take out all requests whose waiting is over: their state has its matcher now."""
        settled = [one for entry in self._entries.values() if (one := self._settled(entry, now))]
        for one in settled:
            self._entries.pop(one.request.request_id)
        return settled

    def _settled(self, entry: Entry, now: float) -> Entry | Refused | None:
        if not entry.result.done():
            if now - entry.since < PATIENCE_SECONDS:
                return None
            assert self._compiler is not None, "a request waits for it"
            self._compiler.give_up(entry.grammar)
            return Refused(entry.request, TOO_LONG)
        try:
            matcher = entry.result.result().new_matcher()
        except concurrent.futures.CancelledError:
            return Refused(entry.request, TOO_LONG)  # another request gave it up for both
        except GrammarRefused as error:
            return Refused(entry.request, f"the grammar cannot be used: {error}")
        except Exception as error:
            # Of the tokenizer's files, of the library: it concerns this request alone.
            return Refused(entry.request, _fault_text(error), is_fault=True)
        entry.state.matcher = matcher
        entry.request.stop_ids |= matcher.stop_ids
        return entry

    def wait(self, seconds: float) -> None:
        """Return when a compilation is done, or after `seconds`."""
        results = [entry.result for entry in self._entries.values()]
        concurrent.futures.wait(results, seconds, return_when="FIRST_COMPLETED")

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()


def _fault_text(error: Exception) -> str:
    return f"the grammar could not be compiled ({type(error).__name__})"
