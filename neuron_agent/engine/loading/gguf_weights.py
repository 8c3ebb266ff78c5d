"""Reads the weights of GGUF files into a transformers model, tensor by tensor, on its device.

Packed bytes go from the mapped file to the device and become numbers there, a stretch of blocks
at a time. Tensors that are stored as they are used stay in the mapping, as those of safetensors
do. How blocks are packed is transformers' and gguf's knowledge.
"""

import mmap
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize

from neuron_agent.engine.forwards.quantize import quantize_linear
from neuron_agent.engine.loading.checkpoint import PACKED, Checkpoint, StoredTensor
from neuron_agent.engine.loading.gguf_config import ROTARY_DIVISORS, config_of, model_names
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode
from neuron_agent.sources.gguf_file import BadGguf, GgufTensor, block_sizes, quant_name, read_gguf

PLAIN_DTYPES = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}
NONSENSE = (
    KeyError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    StrictDataclassError,
)
"""What building a model raises for numbers that make no sense."""
STRETCH_ELEMENTS = 16 * 1024 * 1024
"""How many elements are unpacked at once: the numbers on the way are float32, and many."""


class GgufWeights:
    """A model in GGUF files. Raises LoadRefused where it is damaged or not understood."""

    is_gguf = True

    def __init__(self, path: Path) -> None:
        try:
            self._file = read_gguf(path)
            self.config: PreTrainedConfig = config_of(self._file)
            self._names = model_names(self._file.tensors)
            with torch.device("meta"):
                build: Any = AutoModelForCausalLM.from_config
                self._model: PreTrainedModel = build(self.config)
        except BadGguf as error:
            raise LoadRefused(ErrorCode.LOAD_FAILED, str(error)) from error
        except NONSENSE as error:
            raise LoadRefused(
                ErrorCode.LOAD_FAILED, f"the numbers in {path.name} make no sense: {error}"
            ) from error
        self._check_complete()
        self.checkpoint = Checkpoint(tuple(map(self._stored, self._names)))
        self.quant = quant_name(self._file.metadata)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        return self.checkpoint.weight_bytes(dtype.itemsize)

    def read(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        return self._read(device, dtype, is_int8=False)

    def read_int8(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        return self._read(device, dtype, is_int8=True)

    def _read(self, device: torch.device, dtype: torch.dtype, *, is_int8: bool) -> PreTrainedModel:
        mappings = {tensor.file: _map(tensor.file) for tensor in self._file.tensors.values()}
        model = self._model
        for name, model_name in self._names.items():
            tensor = self._file.tensors[name]
            weights = read_tensor(mappings[tensor.file], tensor, device, dtype)  # [rows, ...]
            _put(model, model_name, self._in_model_order(model_name, weights))
            if is_int8:
                _quantize_if_whole(model, model_name.rpartition(".")[0])
        model.tie_weights()
        self._build_rotary(device)
        model.config.dtype = dtype
        model.train(False).requires_grad_(False)
        return model

    def _in_model_order(self, name: str, weights: Tensor) -> Tensor:
        """Undo llama.cpp's order of query and key rows, in which rotated pairs are neighbours."""
        is_query = ".q_proj." in name
        if self._file.architecture != "llama" or not (is_query or ".k_proj." in name):
            return weights
        config = self.config
        num_heads = config.num_attention_heads if is_query else config.num_key_value_heads
        pairs = weights.view(num_heads, -1, 2, *weights.shape[1:])  # [H, D / 2, 2, ...]
        return pairs.transpose(1, 2).reshape(weights.shape)

    def _build_rotary(self, device: torch.device) -> None:
        """Compute what no file holds: the model was built without memory."""
        rotary = self._model.model.rotary_emb
        fresh = type(rotary)(self.config).to(device)
        divisors = self._file.tensors.get(ROTARY_DIVISORS)
        if divisors is not None:
            by = read_tensor(_map(divisors.file), divisors, device, torch.float32)  # [D / 2]
            fresh.inv_freq = fresh.inv_freq / by
            fresh.original_inv_freq = fresh.inv_freq
        self._model.model.rotary_emb = fresh

    def _check_complete(self) -> None:
        """Raise LoadRefused unless the file holds each of the model's tensors, in its shape."""
        wanted = {name: tuple(tensor.shape) for name, tensor in self._model.named_parameters()}
        if self.config.tie_word_embeddings:
            wanted.pop("lm_head.weight", None)
        found = {self._names[n]: t.shape for n, t in self._file.tensors.items() if n in self._names}
        wrong = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
        if wrong:
            raise LoadRefused(
                ErrorCode.LOAD_FAILED, f"the weights lack {', '.join(wrong[:3])}, as it should be"
            )

    def _stored(self, name: str) -> StoredTensor:
        tensor = self._file.tensors[name]
        return StoredTensor(self._names[name], PACKED, tensor.shape, tensor.num_bytes)


def read_tensor(
    mapping: mmap.mmap, tensor: GgufTensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return a tensor of a mapped file as numbers on the device."""
    raw = torch.frombuffer(mapping, dtype=torch.uint8, offset=tensor.start, count=tensor.num_bytes)
    stored_dtype = PLAIN_DTYPES.get(tensor.type_id)
    if stored_dtype is None:
        return _unpacked(raw, tensor, device, dtype)
    if tensor.start % stored_dtype.itemsize:
        raw = raw.clone()  # numbers must lie at multiples of their size
    return raw.view(stored_dtype).view(tensor.shape).to(device, dtype)


def _unpacked(raw: Tensor, tensor: GgufTensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    block_elements, block_bytes = block_sizes()[tensor.type_id]
    numbers = torch.empty(tensor.num_elements, dtype=dtype, device=device)
    num_stretch = max(1, STRETCH_ELEMENTS // block_elements)
    for first in range(0, tensor.num_elements // block_elements, num_stretch):
        blocks = raw[first * block_bytes : (first + num_stretch) * block_bytes]
        place = numbers[first * block_elements : (first + num_stretch) * block_elements]
        place.copy_(_unpack(blocks, tensor.type_id, device))
    return numbers.view(tensor.shape)


def _unpack(blocks: Tensor, type_id: int, device: torch.device) -> Tensor:
    """Return packed blocks as float32. What torch cannot unpack here, numpy does on the host."""
    if type_id in GGML_BLOCK:
        return dequantize(blocks.to(device), type_id, torch.float32)
    try:
        numbers = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(type_id))
    except NotImplementedError as error:
        kind = gguf.GGMLQuantizationType(type_id).name
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION, f"weights packed as {kind} are not read"
        ) from error
    return torch.from_numpy(numbers)


def _map(file: Path) -> mmap.mmap:
    """Map a file so that it looks writable, which tensors have to be; nobody writes."""
    with file.open("rb") as stream:
        mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    mapping.madvise(mmap.MADV_WILLNEED)  # the disk reads ahead while numbers are unpacked
    return mapping


def _put(model: PreTrainedModel, name: str, weights: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(weights, requires_grad=False))


def _quantize_if_whole(model: PreTrainedModel, name: str) -> None:
    """Make a linear layer int8 once it has all of its tensors, which come in any order."""
    layer = model.get_submodule(name)
    if type(layer) is nn.Linear and not any(part.is_meta for part in layer.parameters()):
        model.set_submodule(name, quantize_linear(layer))
