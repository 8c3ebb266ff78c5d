"""Control frames never leak, all else is byte for byte, however the stream is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.wire import sse
from inference.wire.sse import BadStream, ControlFrameFilter
from neuron_agent.protocol import CONTROL_FRAME_PREFIX

control_json = st.binary(max_size=20).map(lambda b: b'{"progress":"' + b.hex().encode() + b'"}')
frame_text = st.text(alphabet='ab: cortex{}"\n', max_size=20)
ordinary_frame = st.one_of(
    st.just(b"data: [DONE]"),
    st.just(b": keep-alive"),
    st.just(b": cortex-progress {}"),
    st.just(b"data: : cortex {}"),
    st.just(b"event: x\n: cortex {}"),  # a line of a frame, not a frame
    frame_text.map(lambda text: b"data: " + text.replace("\n", " ").encode()),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[tuple[bool, bytes]], list[bytes]]:
    """Frames, each marked as control or not, and the stream they make cut into chunks."""
    frames = draw(
        st.lists(
            st.one_of(
                ordinary_frame.map(lambda frame: (False, frame)),
                control_json.map(lambda text: (True, text)),
            ),
            max_size=8,
        )
    )
    stream = b"".join(
        (CONTROL_FRAME_PREFIX if is_control else b"") + frame + b"\n\n"
        for is_control, frame in frames
    )
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=30)))
    edges = [0, *cuts, len(stream)]
    return frames, [stream[a:b] for a, b in pairwise(edges)]


def run(chunks: list[bytes]) -> tuple[bytes, list[bytes]]:
    frames = ControlFrameFilter()
    pieces = [frames.feed(chunk) for chunk in chunks]
    data = b"".join(piece.data for piece in pieces) + frames.finish()
    return data, [control for piece in pieces for control in piece.controls]


@given(streams())
def test_cut_anywhere_the_frames_are_the_same(
    stream: tuple[list[tuple[bool, bytes]], list[bytes]],
) -> None:
    frames, chunks = stream
    data, controls = run(chunks)
    assert controls == [frame for is_control, frame in frames if is_control]
    assert data == b"".join(frame + b"\n\n" for is_control, frame in frames if not is_control)


@given(st.lists(st.binary(max_size=12), max_size=12))
def test_bytes_without_control_frames_pass_untouched(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    if CONTROL_FRAME_PREFIX not in whole:
        assert run(chunks) == (whole, [])


def test_a_chunk_without_control_frames_is_the_same_object() -> None:
    chunk = b"data: {}\n\n"
    assert ControlFrameFilter().feed(chunk).data is chunk


def test_the_end_of_a_frame_is_not_held_back() -> None:
    frames = ControlFrameFilter()
    assert frames.feed(b"data: 1\n").data == b"data: 1\n"
    assert frames.feed(b"\n").data == b"\n"
    assert frames.feed(b": cor").data == b""
    assert frames.feed(b"dial\n\n").data == b": cordial\n\n"


def test_a_stream_that_breaks_off_in_a_control_frame_loses_it() -> None:
    assert run([b"data: 1\n\n: cortex {"]) == (b"data: 1\n\n", [])
    assert run([b"data: 1\n\n: cort"]) == (b"data: 1\n\n: cort", [])


def test_a_control_frame_without_an_end_is_refused() -> None:
    with pytest.raises(BadStream):
        run([CONTROL_FRAME_PREFIX] + [b"x" * 1024] * 100)


def test_a_comment_is_one_frame_that_the_filter_leaves_alone() -> None:
    comment = sse.comment("cortex-progress", {"stage": "a\n\nb"})
    assert comment == b': cortex-progress {"stage":"a\\n\\nb"}\n\n'
    assert run([comment]) == (comment, [])


@pytest.mark.parametrize(
    ("piece", "only_comments"),
    [
        (b": keep-alive\n\n", True),
        (b": a\n\n: b\n\n", True),
        (b"data: x\n\n", False),
        (b": a\n\ndata: x\n\n", False),
        (b"da", False),
        (b": half", False),
    ],
)
def test_comments_are_told_from_data(piece: bytes, only_comments: bool) -> None:
    assert sse.is_only_comments(piece) is only_comments


def test_the_first_data_line_is_found() -> None:
    assert sse.first_data(b"data: 1\n\ndata: 2\n\n: x\n\n") == b"1"


@given(
    st.lists(st.binary(min_size=1, max_size=6).filter(lambda b: b"\n" not in b), max_size=6),
    st.data(),
)
def test_frames_are_passed_on_whole(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame + b"\n\n" for frame in frames) + b"unfinished"
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1))))
    whole = sse.WholeFrames()
    pieces = [whole.feed(stream[start:end]) for start, end in pairwise([0, *cuts, len(stream)])]
    assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
    assert b"".join(pieces) == stream.removesuffix(b"unfinished")


def test_a_frame_in_small_pieces_costs_no_more_than_its_length() -> None:
    searched: list[int] = []

    class Counting(bytearray):
        def rfind(self, border: bytes, start: int) -> int:  # type: ignore[override]
            searched.append(len(self) - start)
            return super().rfind(border, start)

    whole = sse.WholeFrames()
    whole._rest = Counting()
    for _ in range(1000):
        assert whole.feed(b"x" * 10) == b""
    assert whole.feed(b"\n\n") == b"x" * 10_000 + b"\n\n"
    assert sum(searched) < 12_000


def test_a_frame_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_FRAME_BYTES", 100)
    whole = sse.WholeFrames()
    assert whole.feed(b"x" * 100) == b""
    with pytest.raises(sse.BadStream):
        whole.feed(b"x")
