"""Pieces that were collected together come out in order, neighbours of one kind as one."""

from neuron_agent.text.pieces import CallArguments, CallStarted, Pieces, Said, Thought


def test_neighbours_of_one_kind_are_one_piece() -> None:
    pieces = Pieces()
    for text in ("a", "", "b"):
        pieces.think(text)
    pieces.say("c")
    pieces.say("d")
    assert pieces.drain() == [Thought("ab"), Said("cd")]
    assert pieces.drain() == []


def test_arguments_belong_to_the_call_before_them() -> None:
    pieces = Pieces()
    pieces.start_call("f")
    pieces.add_arguments("{")
    pieces.add_arguments("}")
    pieces.start_call("g")
    assert pieces.drain() == [CallStarted(0, "f"), CallArguments(0, "{}"), CallStarted(1, "g")]
    pieces.add_arguments("{}")
    assert pieces.drain() == [CallArguments(1, "{}")]
