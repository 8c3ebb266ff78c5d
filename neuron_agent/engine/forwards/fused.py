"""Our own forward for the shape that Llama, Qwen2, Qwen3 and Mistral share.

The weights are the transformers module's own, joined: queries, keys and values are one product,
gate and up another. Nothing is computed that no row asks for: the last layer ends with attention
for all rows but the wanted ones. It knows no request, and not how the cache attends.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neuron_agent.engine.cpu.decoder import CompiledDecoder, DecoderShape, can_compile
from neuron_agent.engine.cpu.native import native
from neuron_agent.engine.cpu.steps import NativeSteps, can_step
from neuron_agent.engine.forwards.forward import Computed, pack
from neuron_agent.engine.forwards.kv_cache import KvCache
from neuron_agent.engine.forwards.layer_kinds import attention_windows
from neuron_agent.engine.forwards.layer_steps import LayerSteps, StepShape, TorchSteps
from neuron_agent.engine.forwards.linear import join_linears
from neuron_agent.engine.forwards.packing import pack_head, packed
from neuron_agent.engine.forwards.quantize import Int8Linear, join_int8
from neuron_agent.engine.forwards.slot_cache import SlotCache
from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.pool import KvLayout

FUSED_LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
)
"""Their code was compared with ours. Others that look the same may scale or cap something."""


def can_be_fused(model: PreTrainedModel) -> bool:
    """Whether a model has the shape: the layers by name, and all that configs may change in them.

    Weights of another kind (quantised by others) are not joined.
    """
    layers: list[Any] = list(getattr(model.base_model, "layers", ()))
    if not layers or any(type(layer).__name__ not in FUSED_LAYERS for layer in layers):
        return False
    rotary = getattr(model.base_model, "rotary_emb", None)
    head_size = layers[0].self_attn.head_dim
    turns_all = rotary is not None and 2 * rotary.inv_freq.numel() == head_size
    linears = [child for child in layers[0].modules() if hasattr(child, "in_features")]
    is_plain = all(type(linear) in (nn.Linear, Int8Linear) for linear in linears)
    return turns_all and is_plain and model.config.hidden_act == "silu"


@dataclass(slots=True)
class _Layer:
    """One decoder layer: norms as weights, products as modules that may be packed later."""

    input_norm: Tensor  # [hidden]
    head_norms: Tensor | None  # [H + Hkv, D]: queries' and keys', where the model has them
    query_key_value: nn.Module
    output: nn.Module
    mlp_norm: Tensor  # [hidden]
    gate_up: nn.Module
    down: nn.Module
    window: int | None


class FusedForward:
    """Needs a model that `can_be_fused`, with attention only. The model's own forward works on."""

    is_slow_lane = False

    def __init__(self, model: PreTrainedModel, cache: KvCache) -> None:
        body: Any = model.base_model
        attention = body.layers[0].self_attn
        windows = attention_windows(model)
        assert windows is not None, "a state of another kind"
        self.cache = cache
        self.windows = windows
        self._model: PreTrainedModel | None = model
        self._device = model.device
        self._vocabulary_size: int = body.embed_tokens.num_embeddings
        self._head_size: int = attention.head_dim
        self._num_shared: int = model.config.num_key_value_heads
        self._num_heads: int = model.config.num_attention_heads
        self._scale: float = attention.scaling
        self._epsilon: float = body.norm.variance_epsilon
        self._embedding: nn.Module = body.embed_tokens
        self._norm: Tensor = body.norm.weight
        self._head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._layers = [
            self._joined(block, windows[index]) for index, block in enumerate(body.layers)
        ]
        self._steps = self._steps_for(model)
        self._compiled: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        """All layers at once, where kernels do them: states, turns and rows as in
        `tokens_to_hidden`."""

    @property
    def layout(self) -> KvLayout:
        return self.cache.layout

    @property
    def block_tokens(self) -> int:
        return self.cache.block_tokens

    # --- the step ------------------------------------------------------------------------------

    def compute(self, batch: Batch) -> Computed:
        given = pack(batch, self._device)
        self.cache.begin(batch)
        hidden = self.tokens_to_hidden(given.ids, given.positions, given.rows)  # [R + E, hidden]
        return Computed(self.head(hidden[: given.num_sampled]), hidden[given.num_sampled :])

    def tokens_to_hidden(self, ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """ids [T], positions [T], rows [R] -> those rows' states before the head [R, hidden].

        To be called between the cache's `begin` and the step's end.
        """
        states: Tensor = self._embedding(ids)  # [T, hidden]
        turns = self._steps.turns(positions, states.dtype)
        if self._compiled is not None:
            return self._compiled(states, turns, rows)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, layer, states, turns)  # [T, H * D]
            if index == last:
                states, attended = states[rows], attended[rows]
                if not len(rows):
                    break  # nobody asks: the cache is filled, that is all
            states = states.add_(layer.output(attended))
            gate_up = layer.gate_up(self._steps.norm(states, layer.mlp_norm))
            states = states.add_(layer.down(self._steps.gated(gate_up)))
        return self._steps.norm(states, self._norm)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden [R, hidden] -> logits [R, V]."""
        if not len(hidden):
            return hidden.new_empty(0, self._vocabulary_size)
        logits: Tensor = self._head(hidden)
        return logits

    def _attend(self, index: int, layer: _Layer, states: Tensor, turns: Tensor) -> Tensor:
        """states [T, hidden] -> what the heads saw [T, H * D]."""
        rows = layer.query_key_value(self._steps.norm(states, layer.input_norm))
        turned = self._steps.turned(rows, turns, layer.head_norms)  # [T, H + Hkv, D]
        values = rows.view(len(rows), -1, self._head_size)[:, turned.shape[1] :]
        queries, keys = turned[:, : self._num_heads], turned[:, self._num_heads :]
        out = self.cache.attend(index, queries, keys, values, self._scale, layer.window)
        return out.reshape(len(states), -1)  # of [T, H, D]

    def _steps_for(self, model: PreTrainedModel) -> LayerSteps:
        body: Any = model.base_model
        shape = StepShape(
            num_turned=self._num_heads + self._num_shared,
            head_size=self._head_size,
            epsilon=self._epsilon,
            frequencies=body.rotary_emb.inv_freq,
            turn_scale=body.rotary_emb.attention_scaling,
        )
        kernels = native() if self._device.type == "cpu" else None
        widths = model.config.hidden_size, model.config.intermediate_size
        is_like_states = all(norm.dtype == model.dtype for norm in self._norms())
        if kernels and is_like_states and can_step(self._norm.dtype, self._head_size, *widths):
            return NativeSteps(shape, kernels)
        return TorchSteps(shape)

    def _norms(self) -> Iterator[Tensor]:
        yield self._norm
        for layer in self._layers:
            heads = () if layer.head_norms is None else (layer.head_norms,)
            yield from (layer.input_norm, layer.mlp_norm, *heads)

    # --- weights -------------------------------------------------------------------------------

    def _joined(self, block: Any, window: int | None) -> _Layer:
        attention, mlp = block.self_attn, block.mlp
        return _Layer(
            input_norm=block.input_layernorm.weight,
            head_norms=self._head_norms(attention),
            query_key_value=_join([attention.q_proj, attention.k_proj, attention.v_proj]),
            output=attention.o_proj,
            mlp_norm=block.post_attention_layernorm.weight,
            gate_up=_join([mlp.gate_proj, mlp.up_proj]),
            down=mlp.down_proj,
            window=window,
        )

    def _head_norms(self, attention: Any) -> Tensor | None:
        if not hasattr(attention, "q_norm"):
            return None
        queries = attention.q_norm.weight.expand(self._num_heads, -1)
        keys = attention.k_norm.weight.expand(self._num_shared, -1)
        return torch.cat((queries, keys))

    def settle(self) -> None:
        """Keep only what this forward needs: the model's own no longer works afterwards.

        On a CPU the products are packed, one layer at a time.
        """
        model: Any = self._model
        for layer, block in zip(self._layers, model.base_model.layers, strict=True):
            attention, mlp = block.self_attn, block.mlp
            del attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj
            layer.query_key_value = attention.qkv_proj = packed(layer.query_key_value)
            layer.output = attention.o_proj = packed(layer.output)
            layer.gate_up = mlp.gate_up_proj = packed(layer.gate_up)
            layer.down = mlp.down_proj = packed(layer.down)
        pack_head(model)
        self._head, self._embedding = model.get_output_embeddings(), model.get_input_embeddings()
        self._compiled = self._compiled_layers(model)

    def _compiled_layers(
        self, model: PreTrainedModel
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
        cache = self.cache
        if not isinstance(cache, SlotCache) or not isinstance(self._steps, NativeSteps):
            return None
        if not can_compile(self._layers, self._head_size):
            return None
        shape = DecoderShape(
            num_heads=self._num_heads,
            num_shared=self._num_shared,
            head_size=self._head_size,
            hidden=model.config.hidden_size,
            intermediate=model.config.intermediate_size,
            scale=self._scale,
            epsilon=self._epsilon,
        )
        decoder = CompiledDecoder(shape, self._layers, self._norm)
        like = self._norm.new_empty(self._num_shared, self._head_size)
        windows = [layer.window for layer in self._layers]

        def compute(states: Tensor, turns: Tensor, rows: Tensor) -> Tensor:
            return decoder.run(states, turns, rows, *cache.step_pieces(like, windows))

        return compute

    # --- memory --------------------------------------------------------------------------------

    def reserve(self, kv_tokens: int) -> None:
        self.cache.reserve(kv_tokens)

    def warm_up(self, max_in_flight: int) -> None:
        """Nothing: its first step is as fast as the others."""

    def release(self, slot: int) -> None:
        self.cache.release(slot)

    def close(self) -> None:
        self.cache.clear()
        self._model = None
        self._layers = []
        self._compiled = None
        self._norm = torch.empty(0)
        self._head = self._embedding = nn.Identity()


def _join(linears: Sequence[nn.Module]) -> nn.Module:
    floats = [linear for linear in linears if isinstance(linear, nn.Linear)]
    rounded = [linear for linear in linears if isinstance(linear, Int8Linear)]
    return join_linears(floats) if floats else join_int8(rounded)
