"""Laws of stop strings: nothing of one is ever shown, and nothing else is ever lost."""

from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.text.stop import StopScanner

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4)


def scan(parts: list[str], stops: list[str]) -> tuple[list[str], StopScanner]:
    scanner = StopScanner(stops)
    shown = [scanner.feed(part) for part in parts]
    return ([*shown, scanner.finish()] if scanner.hit is None else shown), scanner


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_what_is_shown_is_the_text_before_the_first_stop(
    parts: list[str], stops: list[str]
) -> None:
    text = "".join(parts)
    shown, scanner = scan(parts, stops)
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert scanner.hit is None
        assert "".join(shown) == text
    else:
        assert scanner.hit in stops
        assert text.startswith("".join(shown) + str(scanner.hit))
        assert not any(stop in "".join(shown) for stop in stops)


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_no_more_is_held_back_than_could_begin_a_stop(parts: list[str], stops: list[str]) -> None:
    scanner = StopScanner(stops)
    shown = "".join(scanner.feed(part) for part in parts)
    if scanner.hit is None:
        held = "".join(parts)[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_where_the_text_is_cut_does_not_matter(parts: list[str], stops: list[str]) -> None:
    text = "".join(parts)
    shown, scanner = scan(parts, stops)
    for others in ([text], list(text)):
        others_shown, other = scan(others, stops)
        assert (other.hit, "".join(others_shown)) == (scanner.hit, "".join(shown))


@given(st.lists(LETTERS, max_size=8), STOPS)
def test_no_character_of_a_stop_is_shown_before_it_is_complete(
    parts: list[str], stops: list[str]
) -> None:
    scanner, shown = StopScanner(stops), [""]
    for part in parts:
        shown.append(shown[-1] + scanner.feed(part))
    if scanner.hit is not None:
        start = len(shown[-1])
        assert "".join(parts)[start:].startswith(scanner.hit)
        assert all(len(before) <= start for before in shown)


def test_a_stop_across_pieces_is_found() -> None:
    shown, scanner = scan(["one E", "N", "D two"], ["END"])
    assert "".join(shown) == "one "
    assert scanner.hit == "END"
    assert scanner.feed("more") == ""
