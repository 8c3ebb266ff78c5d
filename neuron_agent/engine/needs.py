"""What a model needs, read off its config before it is loaded and off the model once it is.

The bridge between transformers' configs and the sums of `sizing`. It decides nothing.
"""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.checkpoint import Checkpoint
from neuron_agent.engine.sizing import KV_TOKENS_BY_DEFAULT, ModelNeeds, StepShape, workspace_bytes
from neuron_agent.scheduling.scheduler import SchedulerLimits

BUFFER_BYTES = 2**20
"""For what a model computes when it is built, such as rotary frequencies: no header lists it."""


def needs_by_config(
    command: LoadModel, checkpoint: Checkpoint, config: PreTrainedConfig, dtype: torch.dtype
) -> ModelNeeds:
    return ModelNeeds(
        weight_bytes=checkpoint.weight_bytes(dtype.itemsize) + BUFFER_BYTES,
        kv_token_bytes=kv_token_bytes_of(config, dtype),
        workspace_bytes=_workspace_bytes(command, config, dtype),
        context_tokens=_context_tokens(command, config),
    )


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


def _workspace_bytes(command: LoadModel, config: PreTrainedConfig, dtype: torch.dtype) -> int:
    text = config.get_text_config(decoder=True)
    return workspace_bytes(
        StepShape(
            step_tokens=SchedulerLimits().step_tokens,
            max_in_flight=command.max_in_flight,
            hidden_size=text.hidden_size,
            intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            vocabulary_size=text.vocab_size,
            context_tokens=_context_tokens(command, config),
            item_bytes=dtype.itemsize,
        )
    )


def measured_needs(command: LoadModel, model: PreTrainedModel, kv_token_bytes: int) -> ModelNeeds:
    tensors = [*model.parameters(), *model.buffers()]  # tied weights are listed once
    return ModelNeeds(
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        kv_token_bytes=kv_token_bytes,
        workspace_bytes=_workspace_bytes(command, model.config, model.dtype),
        context_tokens=_context_tokens(command, model.config),
    )
