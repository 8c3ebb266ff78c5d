"""Stop strings over a stream of text: nothing that could begin one is let out too early.

The stop string that is complete first wins, of several the longest: so it does not matter how the
text was cut. It knows text alone; that the request must then end is the caller's business.
"""

from collections.abc import Sequence

from neuron_agent.text.reader import hold_back


class StopScanner:
    """Feed text, get the text that may be shown; `hit` is the stop string once one came."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit: str | None = None

    def feed(self, text: str) -> str:
        """Return the text that is certainly not part of a stop string. After a hit: nothing."""
        if self.hit is not None:
            return ""
        self._held += text
        starts = [(self._held.find(stop), stop) for stop in self._stops]
        found = [(start + len(stop), start, stop) for start, stop in starts if start >= 0]
        if found:
            _, start, self.hit = min(found)
            shown, self._held = self._held[:start], ""
            return shown
        cut = len(self._held) - hold_back(self._held, self._stops)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """Return what was held back: it did not become a stop string."""
        held, self._held = self._held, ""
        return held
