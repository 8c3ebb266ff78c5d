import pytest

from neuron_agent.scheduling.request import (
    TRANSITIONS,
    IllegalMove,
    Request,
    RequestStatus,
)


def make_request(prompt: tuple[int, ...] = (1, 2, 3)) -> Request:
    return Request("r", prompt, max_tokens=4, stop_ids=frozenset(), submitted_at=0.0)


@pytest.mark.parametrize("start", list(RequestStatus))
@pytest.mark.parametrize("target", list(RequestStatus))
def test_only_the_moves_of_the_table_are_possible(
    start: RequestStatus, target: RequestStatus
) -> None:
    request = make_request()
    request.status = start
    if target in TRANSITIONS[start]:
        request.move_to(target)
        assert request.status is target
    else:
        with pytest.raises(IllegalMove):
            request.move_to(target)
        assert request.status is start


def test_pending_tokens_run_from_the_prompt_into_what_was_generated() -> None:
    request = make_request()
    request.generated_ids = [10, 11]
    request.num_computed = 2
    assert request.pending_ids(2) == (3, 10)
    request.num_computed = 4
    assert request.pending_ids(1) == (11,)
    assert request.is_decoding


def test_a_request_without_a_token_is_in_prefill_even_with_one_token_left() -> None:
    request = make_request()
    request.num_computed = 2
    assert request.num_pending == 1
    assert not request.is_decoding
