"""What a model needs, read off its config before it is loaded and off the model once it is.

The bridge between transformers' configs and the sums of `sizing`. It decides nothing.
"""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.cuda.paged_attention import MASKED_QUERIES
from neuron_agent.engine.loading.checkpoint import StoredTensor, becomes_floating
from neuron_agent.engine.loading.sizing import (
    KV_TOKENS_BY_DEFAULT,
    ModelNeeds,
    StepShape,
    workspace_bytes,
)
from neuron_agent.engine.loading.weights import WeightSource
from neuron_agent.scheduling.limits import limits_for
from neuron_agent.scheduling.pool import KvLayout

BUFFER_BYTES = 2**20
"""For what a model computes when it is built, such as rotary frequencies: no header lists it."""
SCALE_BYTES = 4
"""Of each row of a matrix that is quantised: its scale."""
TABLE_WORDS = ("embed", "wte.", "wpe.")
"""What is in the names of tables, which are looked up and not multiplied by."""


def needs_by_config(
    command: LoadModel,
    source: WeightSource,
    device: torch.device,
    dtype: torch.dtype,
    quant: str | None,
) -> ModelNeeds:
    """Return what a load will need, before a byte of the weights is read."""
    weight_bytes = source.weight_bytes(dtype) if quant is None else _int8_bytes(source, dtype)
    return _needs(
        command,
        source.config,
        device,
        dtype,
        weight_bytes=weight_bytes + BUFFER_BYTES,
        kv_token_bytes=kv_token_bytes_of(source.config, dtype),
    )


def _int8_bytes(source: WeightSource, dtype: torch.dtype) -> int:
    return sum(
        tensor.num_elements + SCALE_BYTES * tensor.shape[0]
        if _is_quantised(tensor)
        else tensor.num_elements * dtype.itemsize
        for tensor in source.checkpoint.tensors
    )


def _is_quantised(tensor: StoredTensor) -> bool:
    """Whether a tensor is the matrix of a linear layer: those are quantised, tables are not."""
    is_matrix = len(tensor.shape) == 2 and becomes_floating(tensor.dtype)
    is_table = any(word in tensor.name for word in TABLE_WORDS)
    return is_matrix and tensor.name.endswith(".weight") and not is_table


def kv_token_bytes_of(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Estimate the cache bytes of a token, all layers; an upper bound for windows and hybrids."""
    text = config.get_text_config(decoder=True)
    num_heads = getattr(text, "num_attention_heads", None)
    if not num_heads:
        return 0  # a pure recurrence keeps nothing per token
    if getattr(text, "kv_lora_rank", None):
        # Latent attention is expanded to full heads before it reaches the cache.
        token_values = num_heads * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim)
    else:
        head_size = getattr(text, "head_dim", None) or text.hidden_size // num_heads
        num_shared = getattr(text, "num_key_value_heads", None) or num_heads
        token_values = 2 * num_shared * head_size
    return int(text.num_hidden_layers * token_values * dtype.itemsize)


def _context_tokens(command: LoadModel, config: PreTrainedConfig) -> int:
    """The model's own limit or the configured one, whichever is less."""
    text = config.get_text_config(decoder=True)
    model_tokens = getattr(text, "max_position_embeddings", None) or KV_TOKENS_BY_DEFAULT
    return int(min(model_tokens, command.max_context or model_tokens))


def _workspace_bytes(
    command: LoadModel, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype
) -> int:
    """Count an ordinary step's tensors, of the size that is scheduled on such a device."""
    text = config.get_text_config(decoder=True)
    is_paged = device.type == "cuda"
    step_tokens = limits_for(KvLayout.BLOCKS if is_paged else KvLayout.SLOTS).step_tokens
    return workspace_bytes(
        StepShape(
            step_tokens=step_tokens,
            mask_tokens=MASKED_QUERIES if is_paged else step_tokens,
            max_in_flight=command.max_in_flight,
            hidden_size=text.hidden_size,
            intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            vocabulary_size=text.vocab_size,
            context_tokens=_context_tokens(command, config),
            item_bytes=dtype.itemsize,
        )
    )


def weight_bytes_of(model: PreTrainedModel) -> int:
    """Return what a model's tensors take; those that share their memory are listed once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def measured_needs(
    command: LoadModel, model: PreTrainedModel, weight_bytes: int, kv_token_bytes: int
) -> ModelNeeds:
    return _needs(
        command,
        model.config,
        model.device,
        model.dtype,
        weight_bytes=weight_bytes,
        kv_token_bytes=kv_token_bytes,
    )


def _needs(
    command: LoadModel,
    config: PreTrainedConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    weight_bytes: int,
    kv_token_bytes: int,
) -> ModelNeeds:
    workspace = _workspace_bytes(command, config, device, dtype)
    if device.type == "cuda":
        workspace += _paged_bytes(command, config, kv_token_bytes)
    return ModelNeeds(
        weight_bytes=weight_bytes,
        kv_token_bytes=kv_token_bytes,
        workspace_bytes=workspace,
        context_tokens=_context_tokens(command, config),
    )


def _paged_bytes(command: LoadModel, config: PreTrainedConfig, kv_token_bytes: int) -> int:
    """Count what blocks and recorded graphs take beside the cache itself."""
    # Only where there is a GPU: a CPU host need not have what its kernels are made of.
    from neuron_agent.engine.cuda.paged_memory import PagedShape, paged_extra_bytes

    context_tokens = _context_tokens(command, config)
    return paged_extra_bytes(
        PagedShape(
            num_layers=config.get_text_config(decoder=True).num_hidden_layers,
            kv_token_bytes=kv_token_bytes,
            context_tokens=context_tokens,
            kv_tokens=max(context_tokens, KV_TOKENS_BY_DEFAULT),
            max_in_flight=command.max_in_flight,
        )
    )
