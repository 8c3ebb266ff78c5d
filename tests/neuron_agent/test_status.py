"""What a neuron says of its models."""

from neuron_agent.devices.channel import ModelReady
from neuron_agent.model_state import ModelState
from neuron_agent.protocol import LoadFailure, LoadRequest, ModelLimit
from neuron_agent.sources.model_text import ModelText
from neuron_agent.status import model_health, model_info
from neuron_agent.text.chat_template import ChatTemplate
from tests.neuron_agent.tiny_model import PLAIN_TEMPLATE, TEMPLATE, build_tokenizer


def model_with(template: str | None, **ready: object) -> ModelState:
    model = ModelState(LoadRequest("m", quant="Q4_K_M"), max_in_flight=1, max_queue_depth=0)
    chat = ChatTemplate(template) if template else None
    model.text = ModelText(build_tokenizer(), chat, stop_ids=())
    fields: dict[str, object] = {
        "model_id": "m",
        "memory_bytes": 2**21,
        "context_tokens": 100,
        "kv_tokens": 1000,
        "dtype": "float32",
        "load_seconds": 0.1,
    }
    model.become_ready(ModelReady(**{**fields, **ready}))  # type: ignore[arg-type]
    return model


def test_capabilities_are_what_template_and_markup_allow() -> None:
    full = model_info(model_with(TEMPLATE))
    assert full.capabilities == ("chat", "completions", "embeddings")
    assert full.tool_call
    assert full.reasoning
    plain = model_info(model_with(PLAIN_TEMPLATE))
    assert plain.capabilities == ("chat", "completions", "embeddings")
    assert not plain.tool_call
    bare = model_info(model_with(None))
    assert bare.capabilities == ("completions", "embeddings")


def test_calls_that_nobody_could_read_are_no_tool_calls() -> None:
    template = PLAIN_TEMPLATE + "{% for tool in tools %}{{ tool }}{% endfor %}"
    assert not model_info(model_with(template)).tool_call


def test_quant_is_what_the_device_made_of_it() -> None:
    assert model_info(model_with(TEMPLATE, quant="int8")).quant == "int8"
    loading = ModelState(LoadRequest("m", quant="Q4_K_M"), max_in_flight=1, max_queue_depth=0)
    assert model_info(loading).quant == "Q4_K_M"


def test_limit_is_what_the_cache_holds_where_the_model_could_do_more() -> None:
    assert model_info(model_with(TEMPLATE)).limit == ModelLimit(100, 99, 99)
    assert model_info(model_with(TEMPLATE, kv_tokens=50)).limit == ModelLimit(50, 49, 49)


def test_slow_lane_and_failure_are_said_in_words() -> None:
    assert model_info(model_with(TEMPLATE)).servable.reason is None
    slow = model_info(model_with(TEMPLATE, slow_lane=True)).servable
    assert slow.ok
    assert "one request at a time" in (slow.reason or "")
    failed = model_with(TEMPLATE)
    failed.fail(LoadFailure("does_not_fit", "too big"))
    assert model_info(failed).servable.reason == "too big"


def test_health_counts_who_was_turned_away() -> None:
    model = model_with(TEMPLATE)
    model.reject("saturated")
    model.reject("saturated")
    assert model_health(model).rejected == {"saturated": 2}
