"""What a model's layers keep of the tokens before them: the question of who may share a step.

It reads configs, as transformers' own caches do. It computes nothing.
"""

from collections.abc import Iterator

from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def attention_windows(model: PreTrainedModel) -> dict[int, int | None] | None:
    """Return each layer's window (None = it sees all), if all that layers do is such attention.

    None if a layer keeps another state, or if positions are turned by how long the longest
    sequence of a call is: such sequences must not share calls.
    """
    layers = DynamicCache(config=model.config).layers
    is_plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    text = model.config.get_text_config(decoder=True)
    # A chunk of attention looks like a window to the cache, but ends elsewhere.
    is_chunked = getattr(text, "attention_chunk_size", None) is not None
    if not (layers and is_plain and model._supports_attention_backend):
        return None
    if is_chunked or _rotates_by_length(model.config):
        return None
    return {
        index: layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
        for index, layer in enumerate(layers)
    }


def _rotates_by_length(config: PreTrainedConfig) -> bool:
    entry = getattr(config.get_text_config(decoder=True), "rope_parameters", None)
    return any("dynamic" in name or name == "longrope" for name in _rope_types(entry))


def _rope_types(entry: object) -> Iterator[str]:
    """Yield the types in a config's rope entry: one for all layers, or one for each kind."""
    if not isinstance(entry, dict):
        return
    for key, value in entry.items():
        if key in ("rope_type", "type") and isinstance(value, str):
            yield value
        yield from _rope_types(value)
