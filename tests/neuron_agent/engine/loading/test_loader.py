import json
import queue
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.device import TorchDevice
from neuron_agent.engine.forwards.linear import is_bfloat16_fast
from neuron_agent.engine.loading import loader, progress
from neuron_agent.engine.loading.loader import LoadContext, choose_dtype
from neuron_agent.engine.loading.needs import kv_token_bytes_of
from neuron_agent.engine.loading.weights import SafetensorsFolder
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from tests.neuron_agent.engine.workbench import (
    CPU,
    PROMPTS,
    Ticks,
    load,
    reference,
    run,
    submit,
    tokens,
)
from tests.neuron_agent.sources.gguf_models import write_gguf
from tests.neuron_agent.tiny_models import CONTEXT_TOKENS, VOCABULARY_SIZE, build_tiny

WEIGHTS = "model.safetensors"
FolderOf = Callable[[str], Path]


@pytest.fixture
def folder(tiny_folder: FolderOf, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return shutil.copytree(tiny_folder("qwen3"), tmp_path / "model")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def refusal_of(folder: Path, free_bytes: int = 10**9, **options: object) -> LoadRefused:
    with pytest.raises(LoadRefused) as caught:
        load(folder, free_bytes, **options)
    return caught.value


def test_limits_come_from_the_model_and_the_memory(tiny_folder: FolderOf) -> None:
    limits = load(tiny_folder("qwen3"), max_in_flight=3).limits
    assert limits.context_tokens == CONTEXT_TOKENS
    assert limits.kv_tokens == 32768
    assert limits.vocabulary_size == VOCABULARY_SIZE
    assert (limits.max_in_flight, limits.dtype) == (3, "float32")
    weights = sum(parameter.nbytes for parameter in build_tiny("qwen3").parameters())
    kv_bytes = 32768 * 2 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, heads, size, float32
    assert limits.memory_bytes > weights + kv_bytes


def test_max_context_limits_the_context(tiny_folder: FolderOf) -> None:
    assert load(tiny_folder("qwen3"), max_context=100).limits.context_tokens == 100
    assert load(tiny_folder("qwen3"), max_context=10**6).limits.context_tokens == CONTEXT_TOKENS


def test_little_memory_makes_a_small_cache(tiny_folder: FolderOf) -> None:
    whole = load(tiny_folder("qwen3")).limits
    small = load(tiny_folder("qwen3"), free_bytes=whole.memory_bytes // 2).limits
    assert small.kv_tokens < whole.kv_tokens
    assert small.memory_bytes <= whole.memory_bytes // 2


def test_what_does_not_fit_is_refused_before_weights_are_read(
    tiny_folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SafetensorsFolder, "read")
    refusal = refusal_of(tiny_folder("qwen3"), free_bytes=1000)
    assert refusal.code == ErrorCode.DOES_NOT_FIT
    assert refusal.free_bytes == 1000
    assert refusal.needed_bytes is not None
    assert refusal.needed_bytes > 1000


def test_what_a_refusal_says_is_needed_is_enough(tiny_folder: FolderOf) -> None:
    needed = refusal_of(tiny_folder("qwen3"), free_bytes=1).needed_bytes
    assert needed is not None
    assert load(tiny_folder("qwen3"), free_bytes=needed).limits.memory_bytes <= needed


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp32"])
def test_a_dtype_is_taken_as_asked(tiny_folder: FolderOf, dtype: str) -> None:
    engine = load(tiny_folder("llama"), dtype=dtype)
    assert engine.limits.dtype == {"fp32": "float32"}.get(dtype, dtype)
    assert len(tokens(run(engine, submit("a", PROMPTS[2]))["a"])) == 12


def test_a_gpu_gets_bfloat16_and_a_cpu_what_it_is_fast_at() -> None:
    command = LoadModel("m", "nowhere")
    assert choose_dtype(command, torch.device("cuda", 0)) is torch.bfloat16
    is_fast = is_bfloat16_fast(CPU)
    assert choose_dtype(command, CPU) is (torch.bfloat16 if is_fast else torch.float32)


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float12"}, {"max_context": 0}, {"max_in_flight": 0}],
)
def test_options_that_cannot_be_met_are_refused(
    tiny_folder: FolderOf, options: dict[str, object]
) -> None:
    assert refusal_of(tiny_folder("qwen3"), **options).code == ErrorCode.UNSUPPORTED_OPTION


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("nonesuch", "NonesuchForCausalLM"),
        ("vit", "ViTForImageClassification"),
        ("bert", "BertForMaskedLM"),
        ("t5", "T5ForConditionalGeneration"),
        ("qwen3", "Qwen3ForSequenceClassification"),
    ],
)
def test_other_kinds_of_models_are_refused(
    folder: Path, model_type: str, architecture: str
) -> None:
    change_config(folder, model_type=model_type, architectures=[architecture])
    assert refusal_of(folder).code == ErrorCode.UNSUPPORTED_ARCHITECTURE


def test_a_config_that_contradicts_itself_is_refused(folder: Path) -> None:
    change_config(folder, layer_types=["full_attention"] * 7)
    assert refusal_of(folder).code in (ErrorCode.LOAD_FAILED, ErrorCode.UNSUPPORTED_ARCHITECTURE)


def test_weights_of_other_shapes_than_the_config_says_are_refused(folder: Path) -> None:
    change_config(folder, hidden_size=64)
    refusal = refusal_of(folder)
    assert refusal.code == ErrorCode.LOAD_FAILED
    assert "shapes" in refusal.message


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refusal = refusal_of(folder)
    assert refusal.code == ErrorCode.LOAD_FAILED
    assert "up_proj" in refusal.message


def test_a_model_that_gives_no_finite_numbers_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED


def test_a_load_tells_how_far_the_reading_is(
    tiny_folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[tuple[str, float, int, int]] = queue.Queue()
    sizes = count(0, step=progress.LEAST_STEP_BYTES)
    read = SafetensorsFolder.read

    def read_slowly(*arguments: Any) -> PreTrainedModel:
        assert told.get(timeout=30)[:2] == ("reading", 0.0)
        stage, percent, bytes_done, bytes_total = told.get(timeout=30)
        assert stage == "reading"
        assert 0 < percent < 80
        assert 0 < bytes_done < bytes_total
        return read(*arguments)

    gauge = progress.Gauge(lambda: next(sizes), 1000 * progress.LEAST_STEP_BYTES)
    monkeypatch.setattr(progress, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(loader, "gauge_for", lambda *_about, **_sizes: gauge)
    monkeypatch.setattr(SafetensorsFolder, "read", read_slowly)
    command = LoadModel("m", str(tiny_folder("qwen3")), dtype="float32")
    context = LoadContext(CPU, lambda: 10**9, Ticks(), lambda *words: told.put(words))
    loader.load_engine(command, context)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_estimated_cache_price_is_the_measured_one(kind: str) -> None:
    model = build_tiny(kind)
    measured = loader.choose_forward(model, torch.float32).kv_token_bytes
    assert kv_token_bytes_of(model.config, torch.float32) == measured


def test_int8_takes_less_and_says_so(tiny_folder: FolderOf) -> None:
    plain = load(tiny_folder("qwen3")).limits
    engine = load(tiny_folder("qwen3"), quant="INT8")
    assert (plain.quant, engine.limits.quant) == (None, "int8")
    linear_bytes = sum(
        parameter.nbytes
        for name, parameter in build_tiny("qwen3").named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    )
    assert plain.memory_bytes - engine.limits.memory_bytes > 0.7 * linear_bytes
    assert plain.needed_bytes - engine.limits.needed_bytes > 0.7 * linear_bytes
    assert len(tokens(run(engine, submit("a", PROMPTS[2]))["a"])) == 12


def test_what_int8_is_said_to_need_is_enough(tiny_folder: FolderOf) -> None:
    needed = refusal_of(tiny_folder("qwen3"), free_bytes=1, quant="int8").needed_bytes
    assert needed is not None
    limits = load(tiny_folder("qwen3"), free_bytes=needed, quant="int8").limits
    assert 0.95 * needed <= limits.memory_bytes <= needed


def test_a_quantisation_that_is_not_there_is_refused(tiny_folder: FolderOf) -> None:
    refusal = refusal_of(tiny_folder("qwen3"), quant="int4")
    assert refusal.code == ErrorCode.QUANT_NOT_FOUND
    assert "int8" in str(refusal.hint)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "mistral"])
def test_a_gguf_gives_the_tokens_of_its_model(tmp_path: Path, kind: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", build_tiny(kind))
    engine = load(path)
    assert engine.limits.quant is None
    prompt = PROMPTS[2]
    assert tokens(run(engine, submit("a", prompt))["a"]) == reference(kind, tuple(prompt), 12)


def test_a_packed_gguf_is_quantised_again_if_asked(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", build_tiny("qwen3"), "Q8_0", tensors_per_file=9)
    unpacked, quantised = load(path, quant="Q8_0").limits, load(path, quant="int8").limits
    assert (unpacked.quant, quantised.quant) == ("Q8_0", "int8")
    assert quantised.memory_bytes < unpacked.memory_bytes


def test_what_a_gguf_is_said_to_need_is_enough(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", build_tiny("qwen3"), "Q4_0")
    needed = refusal_of(path, free_bytes=1).needed_bytes
    assert needed is not None
    assert load(path, free_bytes=needed).limits.memory_bytes <= needed


def test_more_memory_in_use_than_planned_is_claimed(tiny_folder: FolderOf) -> None:
    used = iter([0, 10**9])
    context = LoadContext(CPU, lambda: 10**9, Ticks(), _ignore, lambda: next(used))
    limits = loader.load_engine(command_for(tiny_folder("qwen3"), "m"), context).limits
    plain = load(tiny_folder("qwen3")).limits
    assert limits.memory_bytes > 10**9
    assert limits.needed_bytes - plain.needed_bytes == limits.memory_bytes - plain.memory_bytes


def test_a_model_without_attention_has_no_price_per_token() -> None:
    config = PreTrainedConfig()
    assert kv_token_bytes_of(config, torch.float32) == 0


def test_a_device_refuses_a_second_model_until_the_first_is_gone(tiny_folder: FolderOf) -> None:
    needed = load(tiny_folder("qwen3")).limits.memory_bytes
    device = TorchDevice(CPU, memory_bytes=needed, num_threads=1, clock=Ticks())
    first = device.load(command_for(tiny_folder("qwen3"), "first"), _ignore)
    assert device.memory() == (needed, 0)
    with pytest.raises(LoadRefused) as caught:
        device.load(command_for(tiny_folder("llama"), "second"), _ignore)
    assert caught.value.code == ErrorCode.DOES_NOT_FIT
    first.close()
    device.reclaim("first")
    assert device.memory() == (0, needed)
    device.load(command_for(tiny_folder("llama"), "second"), _ignore)


def command_for(folder: Path, model_id: str) -> LoadModel:
    return LoadModel(model_id, str(folder), dtype="float32")


def _ignore(_stage: str, _percent: float, _bytes_done: int, _bytes_total: int) -> None:
    pass
