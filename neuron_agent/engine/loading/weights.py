"""Where weights are read from: a folder of safetensors, or GGUF files, behind one contract.

Opening a source reads configs and headers and refuses what cannot work; reading it gives a
transformers model on its device. What the model is used for, and whether it fits, is not known
here.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.auto import AutoHfQuantizer

from neuron_agent.devices.channel import LoadModel
from neuron_agent.engine.forwards.quantize import quantize_model
from neuron_agent.engine.loading.checkpoint import FLOATING, Checkpoint, read_checkpoint
from neuron_agent.engine.loading.gguf_weights import GgufWeights
from neuron_agent.engine.refusals import LoadRefused
from neuron_agent.protocol import ErrorCode

HALF_PRECISION = {"BF16": torch.bfloat16, "F16": torch.float16}
MISMATCH = "ignore_mismatched_sizes"
"""What transformers names in its error when config and weights differ in their shapes."""
GENERATIVE_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class WeightSource(Protocol):
    @property
    def checkpoint(self) -> Checkpoint: ...

    @property
    def config(self) -> PreTrainedConfig: ...

    @property
    def quant(self) -> str | None:
        """How the files hold the weights; None = as floating-point numbers."""

    @property
    def is_gguf(self) -> bool: ...

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Return what the weights will take on the device."""

    def read(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Return the model, on its device, ready to compute."""

    def read_int8(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """Return it with int8 layers that compute in `dtype`.

        Layer by layer where that can be: a model that is wanted small may be too large as it is.
        """


def open_source(command: LoadModel, device: torch.device) -> WeightSource:
    """Open what a load names: a folder or a GGUF file. Raises LoadRefused."""
    path = Path(command.folder)
    if path.suffix == ".gguf":
        return GgufWeights(path)
    return SafetensorsFolder(path, device)


class SafetensorsFolder:
    """A Hugging Face folder. transformers reads it; what it does not check is checked here."""

    is_gguf = False

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder = folder
        self.checkpoint = read_checkpoint(folder)
        self.config = _read_config(folder)
        self.quant: str | None = None
        self._is_expanded = False
        if self.checkpoint.is_quantised:
            self.quant, self._is_expanded = _check_quantised(self.config, device)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        return self.checkpoint.weight_bytes(dtype.itemsize, is_expanded=self._is_expanded)

    def read(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        needs_map = device.type == "cuda" or self.checkpoint.is_quantised
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self._folder,
                dtype=dtype,
                # To a GPU shard by shard, without a copy of the whole in the host's memory.
                device_map={"": device} if needs_map else None,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except RuntimeError as error:
            if MISMATCH not in str(error):
                raise  # what the device says is not for us to judge
            raise LoadRefused(
                ErrorCode.LOAD_FAILED, "the weights have other shapes than the config says"
            ) from error
        model: PreTrainedModel = loaded[0]
        missing_names: set[str] = loaded[1]["missing_keys"]
        if missing_names:
            # transformers would go on with random numbers in their place.
            names = ", ".join(sorted(missing_names)[:3])
            raise LoadRefused(ErrorCode.LOAD_FAILED, f"the weights lack {names}")
        model.train(False).requires_grad_(False)
        return model

    def read_int8(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        stored = _stored_dtype(self.checkpoint)
        if device.type != "cpu" or stored is None or stored.itemsize >= dtype.itemsize:
            model = self.read(device, dtype)
            quantize_model(model)
            return model
        model = self.read(device, stored)  # as it is stored it stays mapped: no memory of its own
        quantize_model(model, dtype=dtype)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        model.config.dtype = dtype
        return model


def _stored_dtype(checkpoint: Checkpoint) -> torch.dtype | None:
    """Return the half precision that all weights are stored in; None if they are not."""
    kinds = {tensor.dtype for tensor in checkpoint.tensors if tensor.dtype in FLOATING}
    return HALF_PRECISION.get(kinds.pop()) if len(kinds) == 1 else None


def _read_config(folder: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise unsupported("transformers does not know this kind of model") from error
    except StrictDataclassError as error:
        raise LoadRefused(ErrorCode.LOAD_FAILED, "the config contradicts itself") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not _is_generative(config):
        raise unsupported(f"{config.model_type} is not a causal language model")
    known: PreTrainedConfig = config
    return known


def _is_generative(config: PreTrainedConfig) -> bool:
    """Whether the weights were made to continue text, not to classify, embed or translate it."""
    names = config.architectures or []
    is_named_so = any(name.endswith(GENERATIVE_ENDINGS) for name in names)
    return not config.is_encoder_decoder and (is_named_so or not names)


def _check_quantised(config: PreTrainedConfig, device: torch.device) -> tuple[str, bool]:
    """Return the method that weights were quantised by, and whether they will be expanded.

    transformers knows some twenty methods, each with libraries and hardware of its own.
    Raises LoadRefused naming what is missing for this one.
    """
    entry: dict[str, Any] = config.quantization_config
    method = str(entry.get("quant_method", "an unknown method"))
    try:
        quantizer: Any = AutoHfQuantizer.from_config(entry, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
    except (ImportError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadRefused(
            ErrorCode.UNSUPPORTED_OPTION,
            f"the weights are quantised by {method}, which this neuron cannot read: {error}",
            hint="load the model's unquantised repository, or a GGUF file of it",
        ) from error
    return method, bool(getattr(quantizer.quantization_config, "dequantize", False))


def unsupported(message: str) -> LoadRefused:
    return LoadRefused(
        ErrorCode.UNSUPPORTED_ARCHITECTURE,
        message,
        hint="use a causal language model that transformers supports without remote code",
    )
