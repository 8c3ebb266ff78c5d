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
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine import loader, progress
from neuron_agent.engine.device import TorchDevice
from neuron_agent.engine.loader import LoadContext, choose_dtype
from neuron_agent.engine.needs import kv_token_bytes_of
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.batch import Batch, Chunk
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
from tests.neuron_agent.tiny_models import CONTEXT_TOKENS, SHAPE, VOCABULARY_SIZE, build_tiny

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
    monkeypatch.delattr(loader, "_read_model")
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
    has_tiles = torch.cpu._is_amx_tile_supported()
    assert choose_dtype(command, CPU) is (torch.bfloat16 if has_tiles else torch.float32)


@pytest.mark.parametrize(
    "options",
    [{"quant": "int8"}, {"dtype": "float12"}, {"max_context": 0}, {"max_in_flight": 0}],
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


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refusal = refusal_of(folder)
    assert refusal.code == ErrorCode.LOAD_FAILED
    assert "up_proj" in refusal.message


def test_a_model_that_gives_no_finite_numbers_is_refused(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    assert refusal_of(folder).code == ErrorCode.LOAD_FAILED


def test_a_packed_forward_that_is_wrong_for_a_model_is_not_used(
    tiny_folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        loader.PackedForward, "logits", lambda self, batch: torch.randn(2, VOCABULARY_SIZE)
    )
    engine = load(tiny_folder("qwen3"))
    assert engine.is_slow_lane
    expected = reference("qwen3", tuple(PROMPTS[2]), 12)
    assert tokens(run(engine, submit("a", PROMPTS[2]))["a"]) == expected


def test_attention_that_we_lack_goes_to_the_slow_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding windows declared plain: our attention is asked for a window and says no."""
    monkeypatch.setattr(loader, "can_be_packed", lambda model: True)
    model = build_tiny("mistral")
    forward, _ = loader.choose_forward(model, torch.float32)
    assert forward.is_slow_lane
    assert model.config._attn_implementation == "sdpa"


LENGTHS = {"rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", **LENGTHS},
        {"type": "dynamic", **LENGTHS},
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, **LENGTHS},
    ],
)
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_positions_that_depend_on_the_longest_neighbour_are_not_packed(
    name: str, rope: dict[str, object]
) -> None:
    """A folder's config may say it in the words of several years."""
    assert not loader.can_be_packed(LlamaForCausalLM(LlamaConfig(**SHAPE | {name: dict(rope)})))


def test_one_kind_of_layer_with_such_positions_is_enough() -> None:
    model = build_tiny("llama")
    assert loader.can_be_packed(model)
    plain, by_length = {"rope_type": "default"}, {"rope_type": "dynamic", **LENGTHS}
    model.config.rope_parameters = {"full_attention": plain, "wide_attention": by_length}
    assert not loader.can_be_packed(model)


@torch.inference_mode()
def test_what_a_dynamic_rope_gives_does_not_depend_on_the_neighbours() -> None:
    torch.manual_seed(7)
    model = LlamaForCausalLM(
        LlamaConfig(**SHAPE | {"rope_parameters": {"rope_type": "dynamic", **LENGTHS}})
    ).eval()
    model.model.rotary_emb.max_seq_len_cached = 8  # as if it had been trained on so little
    forward, _ = loader.choose_forward(model, torch.float32)
    short = Chunk("short", 0, 0, (5, 6, 7), 100, False, True)
    long = Chunk("long", 1, 0, tuple(range(100)), 100, False, True)
    alone = forward.logits(Batch((short,)))[0]
    forward.release(0)
    torch.testing.assert_close(forward.logits(Batch((short, long)))[0], alone)


def test_a_load_tells_how_far_the_reading_is(
    tiny_folder: FolderOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: queue.Queue[tuple[str, float, int, int]] = queue.Queue()
    sizes = count(0, step=progress.LEAST_STEP_BYTES)
    read = loader._read_model

    def read_slowly(*arguments: Any) -> PreTrainedModel:
        assert told.get(timeout=30)[:2] == ("reading", 0.0)
        stage, percent, bytes_done, bytes_total = told.get(timeout=30)
        assert stage == "reading"
        assert 0 < percent < 80
        assert 0 < bytes_done < bytes_total
        return read(*arguments)

    gauge = progress.Gauge(lambda: next(sizes), 1000 * progress.LEAST_STEP_BYTES)
    monkeypatch.setattr(progress, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(loader, "gauge_for", lambda *_about: gauge)
    monkeypatch.setattr(loader, "_read_model", read_slowly)
    command = LoadModel("m", str(tiny_folder("qwen3")), dtype="float32")
    context = LoadContext(CPU, lambda: 10**9, Ticks(), lambda *words: told.put(words))
    loader.load_engine(command, context)


def test_a_model_with_a_cache_of_its_own_kind_is_refused(tiny_folder: FolderOf) -> None:
    assert refusal_of(tiny_folder("mamba")).code == ErrorCode.UNSUPPORTED_ARCHITECTURE


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_estimated_cache_price_is_the_measured_one(kind: str) -> None:
    model = build_tiny(kind)
    _, measured = loader.choose_forward(model, torch.float32)
    assert kv_token_bytes_of(model.config, torch.float32) == measured


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
