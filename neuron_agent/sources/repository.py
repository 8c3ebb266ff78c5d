"""Where a model lies on this host: a folder or a GGUF file, fetched from a registry if need be.

Its text side alone may lie here without weights. It answers with a path and knows neither devices
nor phases. Everything here may block on disk or network: callers use threads.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from neuron_agent.config import RegistryConfig
from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import IN_SITU_QUANTS, ErrorCode, LoadRequest
from neuron_agent.sources.gguf_file import BadGguf, part_names, quant_name, read_gguf
from neuron_agent.sources.hub import (
    OnProgress,
    cached_folder,
    fetch,
    fetch_failed,
    fetch_side_files,
    find_repository,
    list_cached_models,
)
from neuron_agent.sources.repository_files import choose_weights, empty_repository, quant_of

__all__ = [
    "fetch_text",
    "find_folder",
    "find_text",
    "list_cached_models",
    "local_folder",
    "weight_bytes",
]

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)
"""Any of these beside a tokenizer_config.json is a tokenizer."""


def find_folder(
    request: LoadRequest,
    cache_folder: str | None,
    on_progress: OnProgress,
    registries: Mapping[str, RegistryConfig] | None = None,
) -> Path:
    """Return where a model lies: a folder of safetensors, or the (first) GGUF file.

    It is fetched first if need be. Raises Unprocessable.
    """
    path = local_folder(request)
    if path is None:
        source = request.source or request.model_id
        repository = find_repository(source, request.revision, cache_folder, registries or {})
        path = fetch(repository, request.quant, on_progress)
    if path.suffix == ".gguf":
        return _check_file(path, request.quant)
    return _choose_within(path, request.quant)


def find_text(
    request: LoadRequest, cache_folder: str | None, registries: Mapping[str, RegistryConfig]
) -> Path | None:
    """Return what of this host the text side of a model can be read from, None if it is not here.

    It needs no weights. Raises Unprocessable where fetching would not help.
    """
    path = local_folder(request)
    if path is not None:
        return _with_text(path, request.quant) or path
    source = request.source or request.model_id
    folder = cached_folder(find_repository(source, request.revision, cache_folder, registries))
    return None if folder is None else _with_text(folder, request.quant)


def fetch_text(
    request: LoadRequest, cache_folder: str | None, registries: Mapping[str, RegistryConfig]
) -> Path:
    """Return the text side of a repository's model, after its small files were fetched.

    Raises Unprocessable.
    """
    source = request.source or request.model_id
    folder = fetch_side_files(find_repository(source, request.revision, cache_folder, registries))
    path = _with_text(folder, request.quant)
    if path is None:
        raise fetch_failed(
            "the repository has no tokenizer beside its weights",
            hint="load the model: a GGUF file has a tokenizer in it",
        )
    return path


def local_folder(request: LoadRequest) -> Path | None:
    """Return the folder or GGUF file a request names, None if it means a registry.

    Raises Unprocessable if there is no such thing here.
    """
    if request.source is None or not request.source.startswith("/"):
        return None
    path = Path(request.source)
    with suppress(OSError):  # closed to this process, or no name that a disk could hold
        if path.is_dir() or (path.suffix == ".gguf" and path.is_file()):
            return path
    raise fetch_failed(
        "the source does not exist on this neuron",
        hint="name a folder or a GGUF file of the neuron's host, or a repository of the hub",
    )


def weight_bytes(path: Path) -> int:
    """Return the size of a model's weight files: what a load will need at the least."""
    if path.suffix == ".gguf":
        files = [path.with_name(name) for name in part_names(path.name)]
    else:
        files = [file for pattern in WEIGHT_PATTERNS for file in path.glob(pattern)]
    return sum(file.stat().st_size for file in files if file.is_file())


def _with_text(path: Path, quant: str | None) -> Path | None:
    """Return the GGUF file that would be loaded, else the folder; None if it has no tokenizer."""
    if path.suffix == ".gguf":
        return path.with_name(part_names(path.name)[0])
    names = _names_within(path)
    for any_quant in (quant, None):  # all files of a repository have the same tokenizer
        with suppress(Unprocessable):  # no weights here, or not these
            first = path / choose_weights(names, any_quant)[0]
            if first.suffix == ".gguf":
                return first
    is_whole = (path / "tokenizer_config.json").is_file()
    has_tokenizer = any((path / name).is_file() for name in TOKENIZER_FILES)
    return path if is_whole and has_tokenizer else None


def _choose_within(folder: Path, quant: str | None) -> Path:
    first = folder / choose_weights(_names_within(folder), quant)[0]
    if first.suffix == ".gguf":
        return first
    if weight_bytes(folder) == 0 or not (folder / "config.json").is_file():
        raise empty_repository()
    return folder


def _names_within(folder: Path) -> list[str]:
    try:
        return [str(file.relative_to(folder)) for file in _files_within(folder)]
    except OSError as error:
        raise fetch_failed("the source folder cannot be read by this neuron") from error


def _files_within(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of the folders in it: GGUF parts may have one of their own.

    Not deeper: somebody may name the root of a disk.
    """
    for entry in sorted(folder.iterdir()):
        if entry.is_file():
            yield entry
        elif entry.is_dir() and os.access(entry, os.R_OK | os.X_OK):
            yield from (file for file in sorted(entry.iterdir()) if file.is_file())


def _check_file(path: Path, quant: str | None) -> Path:
    """Return the (first) file, if a quantisation that is asked for is the one it holds."""
    first = path.with_name(part_names(path.name)[0])
    if quant is None or quant.lower() in IN_SITU_QUANTS:
        return first
    held = {quant_of(path.name).upper(), _quant_by_header(first)}
    if quant.upper() in held:
        return first
    raise Unprocessable(
        f"the file does not hold the quantisation {quant!r}",
        code=ErrorCode.QUANT_NOT_FOUND,
        hint=f"there is {quant_of(path.name)}, {', '.join(IN_SITU_QUANTS)}",
    )


def _quant_by_header(path: Path) -> str | None:
    try:
        return quant_name(read_gguf(path).metadata)
    except BadGguf:
        return None  # the load will say what is wrong with it
