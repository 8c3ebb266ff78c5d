"""Where a model lies on this host: a folder or a GGUF file, fetched from a registry if need be.

It answers with a path and knows neither devices nor phases. Everything here may block on disk or
network: the supervisor calls it in a thread.
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
    fetch,
    fetch_failed,
    find_repository,
    list_cached_models,
)
from neuron_agent.sources.repository_files import choose_weights, empty_repository, quant_of

__all__ = ["find_folder", "list_cached_models", "local_folder", "weight_bytes"]

WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


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


def _choose_within(folder: Path, quant: str | None) -> Path:
    try:
        names = [str(file.relative_to(folder)) for file in _files_within(folder)]
    except OSError as error:
        raise fetch_failed("the source folder cannot be read by this neuron") from error
    first = folder / choose_weights(names, quant)[0]
    if first.suffix == ".gguf":
        return first
    if weight_bytes(folder) == 0 or not (folder / "config.json").is_file():
        raise empty_repository()
    return folder


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
