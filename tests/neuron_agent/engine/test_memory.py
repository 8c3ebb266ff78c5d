import pytest

from neuron_agent.engine.memory import MemoryBooks


def test_what_is_claimed_is_not_free_until_it_is_given_back() -> None:
    books = MemoryBooks(lambda: 100)
    books.claim("a", 60)
    assert (books.claimed_bytes, books.free_bytes) == (60, 40)
    books.give_back("a")
    assert (books.claimed_bytes, books.free_bytes) == (0, 100)


def test_a_device_that_shrinks_has_nothing_free_rather_than_less() -> None:
    usable = [100]
    books = MemoryBooks(lambda: usable[0])
    books.claim("a", 60)
    usable[0] = 50
    assert books.free_bytes == 0


def test_a_second_claim_of_a_model_is_a_mistake() -> None:
    books = MemoryBooks(lambda: 100)
    books.claim("a", 60)
    with pytest.raises(ValueError):
        books.claim("a", 1)


def test_giving_back_nothing_is_harmless() -> None:
    MemoryBooks(lambda: 100).give_back("nobody")
