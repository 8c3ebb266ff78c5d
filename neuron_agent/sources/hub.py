"""Registries that speak the Hugging Face hub's protocol: which one, and how files come from it.

Fetching is huggingface_hub's: resumable, with a cache that is used when the registry cannot be
reached. Each registry has its own address, token and cache; no token goes to another's address.
Everything here may block on disk or network for hours.
"""

import errno
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_agent.config import RegistryConfig
from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import CachedModel, ErrorCode, LoadProgress
from neuron_agent.sources.repository_files import (
    choose_side_files,
    choose_weights,
    empty_repository,
)

FETCH_SHARE_PERCENT = 50.0
"""How much of a load's progress bar the fetching fills, when there is something to fetch."""
LISTING_TIMEOUT_SECONDS = 30.0
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
INDEX_SUFFIX = ".index.json"
"""Of files that say which part holds which weight: no text."""
MAX_SIDE_FILE_BYTES = 128 * 2**20
"""Larger than any tokenizer: what is larger is no small file."""
_REPOSITORY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BY_ADDRESS = re.compile(r"registry://(?P<host>[\w.-]+(:\d+)?)/(?P<repository>[\w.-]+/[\w.-]+)")
_BY_NAME = re.compile(r"(?P<name>[\w-]+):(?P<repository>[\w.-]+(/[\w.-]+)?)")

OnProgress = Callable[[LoadProgress], None]


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of some registry. `endpoint` None is the hub, `token` None its own choice."""

    id: str
    revision: str | None
    endpoint: str | None = None
    token: str | bool | None = None
    cache_folder: str | None = None

    @property
    def address(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint, "token": self.token}


def find_repository(
    source: str,
    revision: str | None,
    cache_folder: str | None,
    registries: Mapping[str, RegistryConfig],
) -> Repository:
    """Return the repository a source means: of the hub, or of the registry in its scheme.

    `owner/model`, `NAME:owner/model`, `registry://host/owner/model`. Raises Unprocessable.
    """
    by_address = _BY_ADDRESS.fullmatch(source)
    if by_address:
        url = f"https://{by_address['host']}"
        name = _name_of(url, registries) or by_address["host"].replace(":", "-")
        registry = registries.get(name, RegistryConfig(url))
        return _of_registry(name, registry, by_address["repository"], revision, cache_folder)
    by_name = _BY_NAME.fullmatch(source)
    if by_name:
        name = by_name["name"]
        if name not in registries:
            raise fetch_failed(
                f"there is no registry {name!r}",
                hint=f"configured are: {', '.join(sorted(registries)) or 'none'}",
            )
        return _of_registry(name, registries[name], by_name["repository"], revision, cache_folder)
    if not _REPOSITORY_ID.fullmatch(source):
        raise fetch_failed(f"{source[:100]!r} is not the name of a repository")
    return Repository(source, revision, cache_folder=cache_folder)


def _name_of(url: str, registries: Mapping[str, RegistryConfig]) -> str | None:
    return next((name for name, r in registries.items() if r.url.rstrip("/") == url), None)


def _of_registry(
    name: str,
    registry: RegistryConfig,
    repository: str,
    revision: str | None,
    cache_folder: str | None,
) -> Repository:
    return Repository(
        repository,
        revision,
        endpoint=registry.url.rstrip("/"),
        token=registry.token or False,  # False: not the hub's either
        cache_folder=registry.cache or str(_hub_cache(cache_folder) / "registries" / name),
    )


def _hub_cache(cache_folder: str | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_folder or HF_HUB_CACHE)


def fetch(repository: Repository, quant: str | None, on_progress: OnProgress) -> Path:
    """Return the local folder of a repository, with what is needed of it. Raises Unprocessable."""
    try:
        sizes = _file_sizes(repository)
    except Exception as error:  # network, registry: some twenty kinds, all meaning the same
        cached = cached_folder(repository)
        if cached is None or not _holds_weights(cached, quant):
            raise fetch_failed(_reason(error)) from error
        return cached
    wanted = [*choose_weights(sizes, quant), *choose_side_files(sizes)]
    absent = [name for name in wanted if name not in sizes]
    if absent:
        raise fetch_failed(f"the repository lacks {absent[0]}")
    missing_bytes = _missing_bytes(repository, {name: sizes[name] for name in wanted})
    try:
        _check_disk(repository, missing_bytes)
        return _download(repository, wanted, missing_bytes, on_progress)
    except Unprocessable:
        raise
    except Exception as error:  # network, registry, disk: the same
        raise fetch_failed(_reason(error)) from error


def fetch_side_files(repository: Repository) -> Path:
    """Return the local folder of a repository, with its small files and no weights.

    Raises Unprocessable.
    """
    try:
        sizes = _file_sizes(repository)
        side_files = (name for name in choose_side_files(sizes) if not name.endswith(INDEX_SUFFIX))
        wanted = {n: sizes[n] for n in side_files if sizes[n] <= MAX_SIDE_FILE_BYTES}
        if not wanted:
            raise empty_repository()
        missing_bytes = _missing_bytes(repository, wanted)
        _check_disk(repository, missing_bytes)
        return _download(repository, list(wanted), missing_bytes, lambda progress: None)
    except Unprocessable:
        raise
    except Exception as error:  # network, registry, disk: the same as above
        raise fetch_failed(_reason(error)) from error


def list_cached_models(cache_folder: str | None) -> tuple[CachedModel, ...]:
    """Return the hub's models that are on this host's disk already."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir(cache_folder)
    except (CacheNotFound, ValueError, OSError):
        return ()
    models = [repo for repo in cache.repos if repo.repo_type == "model" and _has_weights(repo)]
    return tuple(
        CachedModel(repo.repo_id, repo.size_on_disk)
        for repo in sorted(models, key=lambda repo: repo.repo_id)
    )


def _has_weights(repo: Any) -> bool:
    """Whether there is more of a cached repository than its text side."""
    names = (file.file_name for revision in repo.revisions for file in revision.files)
    return any(name.endswith(WEIGHT_SUFFIXES) for name in names)


def _file_sizes(repository: Repository) -> dict[str, int]:
    """Return a repository's files. A registry that does not tell sizes is taken at its word."""
    from huggingface_hub import HfApi

    info = HfApi(**repository.address).model_info(
        repository.id,
        revision=repository.revision,
        timeout=LISTING_TIMEOUT_SECONDS,
        files_metadata=True,
    )
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def cached_folder(repository: Repository) -> Path | None:
    """Return what was fetched of a repository before, be it whole or not."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository.id,
            revision=repository.revision,
            cache_dir=repository.cache_folder,
            local_files_only=True,
            allow_patterns=[],  # ask for no file: whatever is there is of use
        )
    except Exception:  # not there, or not readable: the same to the caller
        return None
    return Path(folder)


def _holds_weights(folder: Path, quant: str | None) -> bool:
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    try:
        return set(choose_weights(names, quant)) <= set(names)
    except Unprocessable:
        return False


def _missing_bytes(repository: Repository, sizes: Mapping[str, int]) -> int:
    """Return the size of the files that are not here whole yet."""
    cached = cached_folder(repository)
    return sum(
        size for name, size in sizes.items() if cached is None or not (cached / name).exists()
    )


def _download(
    repository: Repository, names: list[str], missing_bytes: int, on_progress: OnProgress
) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        repository.id,
        revision=repository.revision,
        cache_dir=repository.cache_folder,
        allow_patterns=[glob.escape(name) for name in names],
        tqdm_class=_progress_bar(missing_bytes, on_progress),
        **repository.address,
    )
    return Path(folder)


def _check_disk(repository: Repository, missing_bytes: int) -> None:
    """Raise Unprocessable if what is not here yet is more than the disk has room for."""
    cache = _hub_cache(repository.cache_folder)
    existing = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), None)
    if existing is None:
        return
    free = shutil.disk_usage(existing).free
    if missing_bytes - _begun_bytes(repository) > free:
        raise fetch_failed(
            f"{missing_bytes} bytes are to be fetched and the neuron's disk has {free} free",
            hint="make room in the neuron's cache",
        )


def _begun_bytes(repository: Repository) -> int:
    """Return what is here of files that were not fetched to their end."""
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=repository.id, repo_type="model")
    blobs = _hub_cache(repository.cache_folder) / folder / "blobs"
    return sum(file.stat().st_size for file in blobs.glob("*.incomplete"))


def _progress_bar(missing_bytes: int, on_progress: OnProgress) -> Any:
    """Return a class for the hub's progress bars that draws nothing and reports bytes.

    The hub has a bar for what arrives and one for what is written: the further one is told. Their
    own totals grow with each file that is begun, so all of the small files would look like all.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    furthest = 0

    class ByteBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal furthest
            self.n += n or 0
            if self._counts_bytes and self.n > furthest:
                furthest = int(self.n)
                on_progress(_fetching(furthest, max(missing_bytes, int(self.total or 0))))
            return None

    return ByteBar


def _fetching(bytes_done: int, bytes_total: int) -> LoadProgress:
    bytes_done = min(bytes_done, bytes_total)
    share = bytes_done / bytes_total if bytes_total else 0.0
    return LoadProgress("fetching", share * FETCH_SHARE_PERCENT, bytes_done, bytes_total)


def _reason(error: Exception) -> str:
    """Return what went wrong in words that carry no path, token or address of this host."""
    if any(_is_disk_full(cause) for cause in _causes(error)):
        return "the disk of the neuron's cache is full"
    match type(error).__name__:
        case "GatedRepoError":
            return "the repository is gated: accept its terms and give the neuron a token"
        case "RepositoryNotFoundError":
            return "there is no such repository, or no access to it"
        case "RevisionNotFoundError":
            return "the repository has no such revision"
        case "LocalEntryNotFoundError" | "OfflineModeIsEnabled" | "ConnectError":
            return "the registry cannot be reached and the model is not in the cache"
        case name:
            return f"the registry did not deliver the model ({name})"


def _is_disk_full(error: BaseException) -> bool:
    text = os.strerror(errno.ENOSPC)
    return getattr(error, "errno", None) == errno.ENOSPC or text in str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def fetch_failed(message: str, hint: str | None = None) -> Unprocessable:
    return Unprocessable(message, code=ErrorCode.REPO_FETCH_FAILED, hint=hint)
