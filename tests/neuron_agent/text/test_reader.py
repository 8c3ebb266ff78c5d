"""A parser over a TextReader sees one text, however it comes, and can go back where it said so."""

from hypothesis import example, given
from hypothesis import strategies as st

from neuron_agent.text.reader import TextReader, Wait, hold_back, overlap

LETTERS = st.text(alphabet="ab ", max_size=12)
MARKERS = st.lists(st.text(alphabet="ab", min_size=2, max_size=4), min_size=1, max_size=2)


class Run:
    """One `take_until` over parts: what was emitted after each, and the marker if one came."""

    def __init__(self, parts: list[str], markers: list[str], trimmed: str) -> None:
        self.reader = TextReader()
        self.emitted = ""
        self.marker: str | None = None
        self._running = self._read(markers, trimmed)
        self.after_each = [self._step(part) for part in parts]
        self.reader.end()
        self._step("")

    def _step(self, part: str) -> str:
        self.reader.feed(part)
        next(self._running, None)
        return self.emitted

    def _read(self, markers: list[str], trimmed: str) -> Wait[None]:
        self.marker = yield from self.reader.take_until(markers, self._emit, trimmed)

    def _emit(self, text: str) -> None:
        self.emitted += text


@example(["baaa"], ["aa", "baaa"], "")  # whole, the longer came first; cut, the shorter
@given(st.lists(LETTERS, max_size=6), MARKERS, st.sampled_from(["", " "]))
def test_text_is_emitted_up_to_the_first_marker(
    parts: list[str], markers: list[str], trimmed: str
) -> None:
    text = "".join(parts)
    run = Run(parts, markers, trimmed)
    assert run.emitted == Run(list(text), markers, trimmed).emitted
    found = [(text.index(marker), len(marker)) for marker in markers if marker in text]
    places = [(start + size, start) for start, size in found]  # the first that is complete
    if not places:
        assert (run.emitted, run.marker) == (text, "")
        return
    before = text[: min(places)[1]]
    assert run.emitted == (before.rstrip(trimmed) if trimmed else before)
    assert run.marker is not None
    assert text.startswith(run.emitted + run.marker)
    assert run.marker.lstrip(trimmed or None) in markers


@given(st.lists(LETTERS, max_size=6), MARKERS, st.sampled_from(["", " "]))
def test_only_what_may_belong_to_a_marker_is_held_back(
    parts: list[str], markers: list[str], trimmed: str
) -> None:
    run = Run(parts, markers, trimmed)
    for number, emitted in enumerate(run.after_each):
        text = "".join(parts[: number + 1])
        if not any(marker in text for marker in markers):
            held = text[len(emitted) :].lstrip(trimmed or None)
            assert not held or any(marker.startswith(held) for marker in markers)


@given(LETTERS, MARKERS)
def test_hold_back_without_trimming_is_the_longest_overlap(text: str, markers: list[str]) -> None:
    assert hold_back(text, markers) == max(overlap(text, marker) for marker in markers)


@given(st.lists(st.text(max_size=3), max_size=8))
def test_what_is_given_back_is_read_again(parts: list[str]) -> None:
    reader, seen = TextReader(), []

    def read() -> Wait[None]:
        seen.append((yield from reader.take()))
        reader.keep()
        yield from reader.take_while("abcdefgh \n")
        yield from reader.take_exactly("xyz")
        reader.give_back()
        while char := (yield from reader.take()):
            seen.append(char)

    running = read()
    for part in parts:
        reader.feed(part)
        next(running, None)
    reader.end()
    next(running, None)
    assert "".join(seen) == "".join(parts)


def test_choices_wait_until_it_is_clear_which_comes() -> None:
    reader = TextReader()
    found: list[str] = []

    def read() -> Wait[None]:
        found.append((yield from reader.take_one_of(("abc", "abd"))))
        found.append((yield from reader.take_one_of(("abc",))))

    running = read()
    for part in ("a", "b", "d", "a", "x"):
        reader.feed(part)
        next(running, None)
    assert found == ["abd", ""]
