"""A refusal says what is missing, and only what would work."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.loading.fitting import SMALLER_CONTEXTS, check_fits, check_will_fit
from neuron_agent.engine.loading.sizing import ModelNeeds
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode

WEIGHTS, TOKEN, WORKSPACE, CONTEXT = 1_000_000, 100, 5_000, 8192


def needs_of(command: LoadModel) -> ModelNeeds:
    return ModelNeeds(
        weight_bytes=WEIGHTS // 2 if command.quant else WEIGHTS,
        kv_token_bytes=TOKEN,
        workspace_bytes=WORKSPACE,
        context_tokens=min(command.max_context or CONTEXT, CONTEXT),
    )


def refusal_of(free_bytes: int, **options: object) -> LoadRefused:
    command = msgspec.structs.replace(LoadModel("m", "nowhere"), **options)
    with pytest.raises(LoadRefused) as caught:
        check_will_fit(needs_of, command, free_bytes)
    assert caught.value.code == ErrorCode.DOES_NOT_FIT
    return caught.value


@pytest.mark.parametrize(
    ("free_bytes", "proposal"),
    [
        (1_200_000, "quant int8:"),
        (600_000, "quant int8 and max_context 256:"),
    ],
)
def test_hint_names_the_least_painful_option_that_fits(free_bytes: int, proposal: str) -> None:
    assert proposal in str(refusal_of(free_bytes).hint)


def test_quantised_already_only_a_smaller_context_is_left() -> None:
    assert "max_context 512:" in str(refusal_of(560_000, quant="int8").hint)


def test_where_nothing_helps_nothing_is_promised() -> None:
    assert refusal_of(400_000).hint == "unload another model"


@given(st.integers(0, 1_300_000), st.sampled_from([None, "int8"]))
def test_what_is_said_to_be_needed_is_enough(free_bytes: int, quant: str | None) -> None:
    command = LoadModel("m", "nowhere", quant=quant)
    refusal = refusal_if_any(command, free_bytes)
    if refusal is None:
        assert check_fits(needs_of(command), free_bytes).memory_bytes <= free_bytes
        return
    assert refusal.free_bytes == free_bytes
    assert refusal.needed_bytes is not None
    assert refusal.needed_bytes > free_bytes
    check_will_fit(needs_of, command, refusal.needed_bytes)


def refusal_if_any(command: LoadModel, free_bytes: int) -> LoadRefused | None:
    try:
        check_will_fit(needs_of, command, free_bytes)
    except LoadRefused as refusal:
        return refusal
    return None


def test_options_that_the_model_does_not_take_are_not_proposed() -> None:
    def only_plain(command: LoadModel) -> ModelNeeds:
        if command.quant is not None:
            raise LoadRefused(ErrorCode.UNSUPPORTED_OPTION, "quantised already")
        return needs_of(command)

    with pytest.raises(LoadRefused) as caught:
        check_will_fit(only_plain, LoadModel("m", "nowhere"), 1_110_000)
    assert "max_context 1024:" in str(caught.value.hint)
    assert SMALLER_CONTEXTS[1] == 1024
