"""Which files of a repository make up the model that is asked for.

Names in, names out: it reads nothing. safetensors go before GGUF, unless a GGUF's quantisation is
asked for by its name; files that run code when they are read (pickles) are never chosen.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import IN_SITU_QUANTS, ErrorCode
from neuron_agent.sources.gguf_file import is_later_part, part_names

SIDE_SUFFIXES = frozenset([".json", ".jinja", ".txt", ".model"])
"""Of the small files beside the weights: configs, tokenizers, templates."""
PICKLE_SUFFIXES = frozenset([".bin", ".pt", ".pth"])
NOT_MODELS = ("mmproj", "imatrix")
"""What names of GGUF files begin with that hold something beside a language model."""
PREFERRED_QUANTS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "BF16", "F16")
"""Of several GGUF files, when none is named. The memory is the same: they are unpacked."""

QUANTISED_CHECKPOINTS = frozenset(
    ["fp8", "gptq", "awq", "compressed-tensors", "bitsandbytes", "mxfp4", "torchao", "hqq"]
)
"""Methods that safetensors are quantised by beforehand: asked for, they name what is there."""

_QUANT = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_[A-Z0-9]+)*|BF16|FP?16|FP?32)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def choose_weights(names: Collection[str], quant: str | None) -> tuple[str, ...]:
    """Return the names of the weight files; of a GGUF in parts, all, the first one first.

    Raises Unprocessable: quant_not_found, empty_repo, unsupported_option.
    """
    ggufs, safetensors = by_quant(names), _safetensors(names)
    if quant is not None and not _is_for_device(quant, safetensors):
        return _parts(_of_quant(ggufs, quant))
    if safetensors:
        return safetensors
    if ggufs:
        return _parts(_preferred(ggufs))
    if any(PurePosixPath(name).suffix in PICKLE_SUFFIXES for name in names):
        raise Unprocessable(
            "the weights are pickles, which can run code when read",
            code=ErrorCode.UNSUPPORTED_OPTION,
            hint="use a repository with safetensors or GGUF weights",
        )
    if any(name.endswith(".safetensors") for name in names):
        raise Unprocessable(
            "the weights have names that transformers does not read",
            code=ErrorCode.UNSUPPORTED_OPTION,
            hint="use a repository with model.safetensors, in one file or in numbered parts",
        )
    raise empty_repository()


def _is_for_device(quant: str, safetensors: tuple[str, ...]) -> bool:
    """Whether a quantisation is not a matter of which file: the device will see to it."""
    is_beforehand = bool(safetensors) and quant.lower() in QUANTISED_CHECKPOINTS
    return is_beforehand or quant.lower() in IN_SITU_QUANTS


def choose_side_files(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the small files that go with the weights."""
    paths = (PurePosixPath(name) for name in names)
    return tuple(str(p) for p in paths if p.suffix in SIDE_SUFFIXES and len(p.parts) == 1)


def empty_repository() -> Unprocessable:
    return Unprocessable(
        "there is no model in this repository",
        code=ErrorCode.EMPTY_REPO,
        hint="a model has a config.json and weights beside it, or is a GGUF file",
    )


def by_quant(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the GGUF models by their quantisation, as their names tell it."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        is_model = path.suffix == ".gguf" and not path.name.lower().startswith(NOT_MODELS)
        if is_model and not is_later_part(path.name):
            found.setdefault(quant_of(path.name), []).append(name)
    return found


def quant_of(name: str) -> str:
    """Return the quantisation in a GGUF's name; the name itself where it tells none."""
    stem = name.removesuffix(".gguf")
    labels = _QUANT.findall(stem)
    return str(labels[-1]).upper() if labels else stem


def _of_quant(ggufs: dict[str, list[str]], quant: str) -> str:
    """Return the file of a quantisation, or the one whose name is given in its place."""
    if any(quant in names for names in ggufs.values()):
        return quant
    found = [n for label, names in ggufs.items() if label.upper() == quant.upper() for n in names]
    if not found:
        there_is = ", ".join([*sorted(ggufs), *IN_SITU_QUANTS])
        raise Unprocessable(
            f"there is no quantisation {quant!r} in this repository",
            code=ErrorCode.QUANT_NOT_FOUND,
            hint=f"there is {there_is}",
        )
    if len(found) > 1:
        raise Unprocessable(
            f"{len(found)} files hold the quantisation {quant!r}",
            code=ErrorCode.QUANT_NOT_FOUND,
            hint=f"name one as quant: {', '.join(found[:5])}",
        )
    return found[0]


def _preferred(ggufs: dict[str, list[str]]) -> str:
    for quant in (*PREFERRED_QUANTS, *sorted(ggufs)):
        if quant in ggufs:
            return _of_quant(ggufs, quant)
    raise empty_repository()


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    return tuple(str(path.with_name(part)) for part in part_names(path.name))


def _safetensors(names: Iterable[str]) -> tuple[str, ...]:
    """Return the weights at the top by transformers' own names: it reads no others."""
    found = (name for name in names if name.endswith(".safetensors") and "/" not in name)
    return tuple(sorted(name for name in found if name.startswith("model")))
