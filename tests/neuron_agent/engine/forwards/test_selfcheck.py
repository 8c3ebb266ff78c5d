import pytest
import torch

from neuron_agent.engine.forwards.selfcheck import agree, probe_sequences


@pytest.mark.parametrize("size", [3, 100, 150_000])
def test_probes_are_two_different_sequences_of_real_tokens(size: int) -> None:
    first, second = probe_sequences(size)
    assert first[: len(second)] != second
    assert all(0 <= token < size for token in first + second)


def test_rounding_agrees_and_another_answer_does_not() -> None:
    reference = torch.randn(2, 50, generator=torch.Generator().manual_seed(1))
    assert agree(reference + 1e-5, reference)
    assert not agree(reference.flip(0), reference)
    mixed = torch.stack((reference[0], reference[1].roll(1)))
    assert not agree(mixed, reference), "one wrong sequence is enough"
    assert not agree(torch.full_like(reference, float("nan")), reference)
    assert not agree(reference * 1.2, reference), "the same best token, at another temperature"


def test_a_coarser_dtype_is_allowed_its_rounding() -> None:
    reference = torch.randn(2, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(2)) * 0.05
    assert agree(reference + noise, reference)
    assert not agree(reference.float() + noise, reference.float())
