from neuron_agent.devices.channel import TokenLogprob
from neuron_agent.engine.outputs import embedding_output, end_output, prefill_output, token_output
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.request import FinishReason, Request

LOGPROB = TokenLogprob(-0.5, [(7, -0.5)])


def make_request(*generated: int) -> Request:
    request = Request("a", (1, 2, 3), 10, frozenset({9}), submitted_at=1.0, num_cached=2)
    request.generated_ids += generated
    request.num_computed = 2
    request.admitted_at, request.first_token_at = 1.5, 1.75
    return request


def test_the_first_token_brings_what_is_known_of_the_prompt() -> None:
    first = token_output(make_request(7), None, 7, None)
    assert (first.prefill_done, first.cached_tokens) == (3, 2)
    assert (first.queue_ms, first.prefill_ms) == (500.0, 250.0)
    later = token_output(make_request(7, 8), None, 8, None)
    assert (later.prefill_done, later.cached_tokens, later.queue_ms) == (None, None, None)


def test_a_stop_token_is_counted_but_not_said() -> None:
    last = token_output(make_request(7, 9), FinishReason.STOP, None, LOGPROB)
    assert (last.token_ids, last.logprobs, last.num_generated) == ([], [], 2)


def test_a_token_has_its_logprob() -> None:
    assert token_output(make_request(7), None, 7, LOGPROB).logprobs == [LOGPROB]
    assert token_output(make_request(7), None, 7, None).logprobs is None


def test_a_prompt_tells_how_far_it_is() -> None:
    output = prefill_output(make_request())
    assert (output.prefill_done, output.finish, output.token_ids) == (2, None, [])


def test_an_embedding_ends_its_request() -> None:
    request = make_request()
    request.finish = FinishReason.STOP
    output = embedding_output(request, [0.6, 0.8], now=2.0)
    assert (output.finish, output.embedding, output.num_generated) == ("stop", [0.6, 0.8], 0)
    assert (output.prefill_done, output.cached_tokens, output.prefill_ms) == (3, 2, 500.0)


def test_an_end_says_why() -> None:
    output = end_output(make_request(7), FinishReason.ERROR, ErrorCode.REQUEST_FAILED, "sorry")
    assert (output.finish, output.error_code, output.error) == (
        "error",
        ErrorCode.REQUEST_FAILED,
        "sorry",
    )
    assert output.num_generated == 1
