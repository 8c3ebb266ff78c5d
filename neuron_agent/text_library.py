"""The text sides of models that are not loaded: those used last are kept, the others read anew.

Counting tokens needs a tokenizer and a template, not a device. A text that many ask for at once is
read once. It knows files and registries by name only, and no requests; all of it belongs to one
event loop, the reading is done in threads.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from neuron_agent.config import RegistryConfig
from neuron_agent.errors import NotFound, Unprocessable
from neuron_agent.protocol import ErrorCode, LoadRequest
from neuron_agent.sources import repository
from neuron_agent.sources.model_text import ModelText, read_model_text

MAX_KEPT = 4
"""A large vocabulary takes some hundred megabytes."""
NUM_FETCHES = 2
"""Not the threads of loads: those may be taken for hours."""


class TextLibrary:
    """Ask with what a load would be asked with."""

    def __init__(self, cache_folder: str | None, registries: Mapping[str, RegistryConfig]) -> None:
        self._cache_folder = cache_folder
        self._registries = registries
        self._kept: OrderedDict[LoadRequest, ModelText] = OrderedDict()
        self._reading: dict[LoadRequest, asyncio.Task[ModelText]] = {}
        self._fetch_threads = ThreadPoolExecutor(NUM_FETCHES, "texts")

    def keep(self, request: LoadRequest, text: ModelText) -> None:
        """Keep the text of a model that leaves; the one used longest ago may have to go."""
        self._use(_what_is_read(request), text)

    async def text_of(self, request: LoadRequest) -> ModelText:
        """Return the text side of a model. Raises NotFound, Unprocessable.

        Named by its id alone, a model is the last one of that id, wherever it came from.
        """
        wanted = _what_is_read(request)
        if wanted == LoadRequest(wanted.model_id):
            ids = [known for known in self._kept if known.model_id == wanted.model_id]
            wanted = ids[-1] if ids else wanted
        if wanted in self._kept:
            self._kept.move_to_end(wanted)
            return self._kept[wanted]
        reading = self._reading.get(wanted)
        if reading is None:
            reading = asyncio.create_task(self._read(wanted))
            self._reading[wanted] = reading
        return await asyncio.shield(reading)  # who leaves does not stop it for the others

    async def close(self) -> None:
        """Give up what is being read."""
        reading = list(self._reading.values())
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        self._fetch_threads.shutdown(wait=False, cancel_futures=True)

    async def _read(self, wanted: LoadRequest) -> ModelText:
        try:
            path = await self._find(wanted)
            text = await asyncio.to_thread(read_model_text, path)
            self._use(wanted, text)
            return text
        finally:
            del self._reading[wanted]

    async def _find(self, wanted: LoadRequest) -> Path:
        """Return where the text is, fetched if need be. What is here needs no thread of a hub's."""
        try:
            path = await asyncio.to_thread(
                repository.find_text, wanted, self._cache_folder, self._registries
            )
            if path is not None:
                return path
            return await asyncio.get_running_loop().run_in_executor(
                self._fetch_threads,
                repository.fetch_text,
                wanted,
                self._cache_folder,
                self._registries,
            )
        except Unprocessable as error:
            if wanted.source is None and error.code == ErrorCode.REPO_FETCH_FAILED:
                raise _not_here(wanted.model_id, error.message) from error
            raise

    def _use(self, wanted: LoadRequest, text: ModelText) -> None:
        self._kept[wanted] = text
        self._kept.move_to_end(wanted)
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)


def _what_is_read(request: LoadRequest) -> LoadRequest:
    """Return a request with what decides which files are read, and nothing else."""
    return LoadRequest(
        request.model_id, source=request.source, revision=request.revision, quant=request.quant
    )


def _not_here(model_id: str, reason: str) -> NotFound:
    return NotFound(
        f"the model {model_id[:256]!r} is not on this neuron: {reason}",
        code=ErrorCode.MODEL_NOT_FOUND,
        param="model",
    )
