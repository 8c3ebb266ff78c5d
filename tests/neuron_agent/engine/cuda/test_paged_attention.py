"""Plain attention in pieces is that of the whole, and no piece is larger than promised."""

import pytest
import torch
from torch import Tensor

from neuron_agent.engine.cuda import paged_attention
from neuron_agent.engine.cuda.paged_attention import PrefillStep, attend_one, plain_prefill

STARTS, ENDS = (0, 9, 4), (6, 10, 17)


@pytest.mark.parametrize("window", [None, 5])
def test_a_long_prompt_attends_a_few_tokens_at_a_time(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(num, 2, 8) for num in (20, sum(ENDS), sum(ENDS)))
    unused = torch.empty(0)
    step = PrefillStep(STARTS, ENDS, unused, unused, None)
    whole = plain_prefill(query, key, value, step, 0.3, window)
    sizes = []

    def noting(own: Tensor, *others: Tensor | float | int | None) -> Tensor:
        sizes.append(len(own))
        return attend_one(own, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(paged_attention, "MASKED_QUERIES", 4)
    monkeypatch.setattr(paged_attention, "attend_one", noting)
    pieces = plain_prefill(query, key, value, step, 0.3, window)
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)
    assert sizes == [4, 2, 1, 4, 4, 4, 1]
