"""Who is being served right now, so that a caller can end a request of its own by its id.

It knows tasks and callers, not what they asked for. A caller is who shows the same credential, or,
where none is shown, who comes from the same address.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from hmac import compare_digest

from inference.client import Client
from inference.wire.errors import RequestCancelled, RequestNotFound


@dataclass(eq=False, slots=True)
class _Run:
    client: Client
    task: "asyncio.Task[object]"
    is_cancelled: bool = False


class RunningRequests:
    """One per gateway. Belongs to the event loop."""

    def __init__(self) -> None:
        self._runs: dict[str, list[_Run]] = {}

    @contextlib.contextmanager
    def while_running(self, client: Client) -> Iterator[None]:
        """Raises RequestCancelled in place of what a cancellation by the caller ended."""
        task = asyncio.current_task()
        assert task is not None
        run = _Run(client, task)
        runs = self._runs.setdefault(client.request_id, [])
        runs.append(run)
        try:
            yield
        except asyncio.CancelledError:
            if not run.is_cancelled:
                raise
            task.uncancel()
            raise RequestCancelled() from None
        finally:
            runs.remove(run)
            if not runs:
                self._runs.pop(client.request_id, None)

    def cancel(self, request_id: str, caller: Client) -> None:
        """End the caller's requests of this id. Raises RequestNotFound where it has none."""
        own = [run for run in self._runs.get(request_id, ()) if _is_same(run.client, caller)]
        if not own:
            raise RequestNotFound()
        for run in own:
            if not run.is_cancelled:
                run.is_cancelled = True
                run.task.cancel()

    def check_integrity(self) -> None:
        """Raise AssertionError if a request is still listed. For when nothing runs."""
        assert not self._runs, f"still running: {sorted(self._runs)}"


def _is_same(client: Client, caller: Client) -> bool:
    if client.credential or caller.credential:
        return compare_digest(client.credential.encode(), caller.credential.encode())
    return client.address == caller.address
