from neuron_agent.scheduling.batch import Copy
from neuron_agent.scheduling.books import PendingCopies


def test_a_source_is_read_until_the_last_of_its_copies_is_gone() -> None:
    copies = PendingCopies()
    copies.add("a", Copy(0, 1, 5))
    copies.add("b", Copy(0, 2, 5))
    copies.pop("a")
    assert copies.sources == {0}
    copies.pop("b")
    assert copies.sources == frozenset()
    assert copies.all == ()


def test_only_copies_that_were_carried_out_are_done() -> None:
    copies = PendingCopies()
    copies.add("a", Copy(0, 1, 5))
    copies.add("b", Copy(0, 2, 5))
    assert copies.done_by((Copy(0, 2, 5), Copy(7, 8, 9))) == ("b",)
    assert copies.done_by(()) == ()
    assert "b" in copies, "it is the owner who forgets"


def test_forgetting_what_is_not_there_is_harmless() -> None:
    assert PendingCopies().pop("a") is None
