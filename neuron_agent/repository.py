"""Where a model's files come from: a folder of this host, or the hub through huggingface_hub.

It answers with a folder and knows neither devices nor phases. Everything here may block on disk
or network: the supervisor calls it in a thread.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuron_agent.errors import Unprocessable
from neuron_agent.protocol import CachedModel, ErrorCode, LoadProgress, LoadRequest

WEIGHT_PATTERNS = ("*.safetensors", "*.gguf", "*.bin")
FETCHED_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]
FETCH_SHARE_PERCENT = 50.0
"""How much of a load's progress bar the fetching fills, when there is something to fetch."""
_REPOSITORY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

OnProgress = Callable[[LoadProgress], None]


def find_folder(request: LoadRequest, cache_folder: str | None, on_progress: OnProgress) -> Path:
    """Return the local folder of a model, fetched first if need be. Raises Unprocessable."""
    folder = local_folder(request)
    if folder is None:
        folder = _fetch(request, cache_folder, on_progress)
    check_folder(folder)
    return folder


def local_folder(request: LoadRequest) -> Path | None:
    """Return the folder a request names, None if it means the hub. Raises Unprocessable."""
    if request.source is None or not request.source.startswith("/"):
        return None
    folder = Path(request.source)
    if not folder.is_dir():
        raise Unprocessable(
            "the source folder does not exist on this neuron",
            code=ErrorCode.REPO_FETCH_FAILED,
            hint="name a folder of the neuron's host, or a repository of the hub",
        )
    return folder


def check_folder(folder: Path) -> None:
    """Raise Unprocessable if the folder holds no model."""
    if weight_bytes(folder) == 0 or not (folder / "config.json").is_file():
        raise Unprocessable(
            "there is no model in this repository",
            code=ErrorCode.EMPTY_REPO,
            hint="a model has a config.json and weights beside it",
        )


def weight_bytes(folder: Path) -> int:
    """Return the size of a folder's weight files: what a load will need at the least."""
    return sum(file.stat().st_size for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern))


def list_cached_models(cache_folder: str | None) -> tuple[CachedModel, ...]:
    """Return the hub's models that are on this host's disk already."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir(cache_folder)
    except (CacheNotFound, ValueError, OSError):
        return ()
    models = [repo for repo in cache.repos if repo.repo_type == "model"]
    return tuple(
        CachedModel(repo.repo_id, repo.size_on_disk)
        for repo in sorted(models, key=lambda repo: repo.repo_id)
    )


def _fetch(request: LoadRequest, cache_folder: str | None, on_progress: OnProgress) -> Path:
    from huggingface_hub import snapshot_download

    repository = request.source or request.model_id
    if not _REPOSITORY_ID.fullmatch(repository):
        raise _fetch_failed(f"{repository!r} is not the name of a repository")
    try:
        folder = snapshot_download(
            repository,
            revision=request.revision,
            cache_dir=cache_folder,
            allow_patterns=FETCHED_PATTERNS,
            tqdm_class=_progress_bar(on_progress),
        )
    except Exception as error:  # network, registry, disk: some twenty kinds, all meaning the same
        raise _fetch_failed(_reason(error)) from error
    return Path(folder)


def _progress_bar(on_progress: OnProgress) -> Any:
    """Return a class for the hub's progress bars that draws nothing and reports bytes."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class ByteBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self._counts_bytes:
                on_progress(_fetching(int(self.n), int(self.total or 0)))
            return None

    return ByteBar


def _fetching(bytes_done: int, bytes_total: int) -> LoadProgress:
    share = min(1.0, bytes_done / bytes_total) if bytes_total else 0.0
    return LoadProgress("fetching", share * FETCH_SHARE_PERCENT, bytes_done, bytes_total)


def _reason(error: Exception) -> str:
    """Return what went wrong in words that carry no path, token or address of this host."""
    match type(error).__name__:
        case "GatedRepoError":
            return "the repository is gated: accept its terms and give the neuron a token"
        case "RepositoryNotFoundError":
            return "there is no such repository, or no access to it"
        case "RevisionNotFoundError":
            return "the repository has no such revision"
        case "LocalEntryNotFoundError":
            return "the hub cannot be reached and the model is not in the cache"
        case name:
            return f"the hub did not deliver the model ({name})"


def _fetch_failed(message: str) -> Unprocessable:
    return Unprocessable(message, code=ErrorCode.REPO_FETCH_FAILED)
