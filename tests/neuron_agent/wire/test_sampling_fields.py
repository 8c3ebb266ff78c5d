"""What may be said of sampling, and what is refused."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.errors import BadRequest
from neuron_agent.wire.json_body import decode
from neuron_agent.wire.sampling_fields import SamplingBody, SamplingFields, check_sampling


def check(**fields: Any) -> SamplingFields:
    return check_sampling(decode(fields, SamplingBody))


def refused(**fields: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        check(**fields)
    return caught.value.param


def test_zero_is_not_absence() -> None:
    fields = check(temperature=0, top_p=0, top_k=0, min_p=0, seed=0, min_tokens=0)
    assert (fields.temperature, fields.top_p, fields.top_k, fields.min_p) == (0, 0, 0, 0)
    assert fields.seed == 0


def test_nothing_said_is_all_defaults() -> None:
    assert check() == SamplingFields()
    assert check(**dict.fromkeys(SamplingBody.__struct_fields__)) == SamplingFields()


def test_everything_said_arrives() -> None:
    fields = check(
        max_tokens=9,
        n=3,
        temperature=0.5,
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        repetition_penalty=1.1,
        logit_bias={"5": -100, "7": 1.5},
        stop_token_ids=[1, 2],
        ignore_eos=True,
        min_tokens=9,
    )
    assert (fields.max_tokens, fields.num_choices, fields.min_tokens) == (9, 3, 9)
    assert (fields.presence_penalty, fields.frequency_penalty) == (-2, 2)
    assert (fields.repetition_penalty, fields.min_p) == (1.1, 0.1)
    assert fields.logit_bias == {5: -100, 7: 1.5}
    assert fields.stop_token_ids == (1, 2)
    assert fields.ignores_stop_tokens


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 1, 2**63 - 1])
def test_any_64_bit_seed_becomes_one_the_channel_carries(seed: int) -> None:
    found = check(seed=seed).seed
    assert found is not None
    assert 0 <= found < 2**63


def test_one_stop_string_may_stand_alone() -> None:
    assert check(stop="END").stops == ("END",)
    assert check(stop=["a", "b"]).stops == ("a", "b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {"": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1.5": 1}),
        ("logit_bias", {"٣": 1}),
        ("logit_bias", {"99999999999": 1}),
        ("logit_bias", {str(token): 1 for token in range(10_001)}),
        ("logit_bias", {"1": "2"}),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", list(range(300))),
        ("stop_token_ids", ["1"]),
        ("repetition_penalty", -1),
        ("repetition_penalty", 1e9),
        ("n", 1.5),
        ("max_tokens", 0),
        ("max_tokens", 10**12),
        ("seed", 2**63),
    ],
)
def test_value_that_makes_no_sense_is_refused_by_name(field: str, value: object) -> None:
    assert (refused(**{field: value}) or "").startswith(field)


@given(
    st.sampled_from(["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"]),
    st.floats(),
)
def test_number_is_taken_or_refused_by_name(field: str, value: float) -> None:
    found = outcome(field, value)
    if isinstance(found, BadRequest):
        assert found.param == field
        assert math.isnan(value) or not 0 <= value <= 1
    else:
        assert found == value
        assert -2 <= value <= 2


def outcome(field: str, value: float) -> float | BadRequest:
    try:
        return float(getattr(check(**{field: value}), field))
    except BadRequest as error:
        return error
