"""The two ways a step goes through a transformers model, behind one contract.

`PackedForward` packs all sequences of a step into one row and attends over our own cache.
`SlowLane` runs one sequence after the other on transformers' own cache: for models whose state is
not plain attention. Both know chunks of token ids and give logits; neither knows requests.
"""

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from neuron_agent.engine import attention
from neuron_agent.engine.kv_slots import KvSlots
from neuron_agent.scheduling.batch import Batch, Chunk


class SequenceFailed(Exception):
    """One sequence of the batch is the culprit: its state is spoilt, the others' is not."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the forward pass of {request_id} failed")
        self.request_id = request_id


class Forward(Protocol):
    """A model that computes batches. Repeating a batch that failed half-way is allowed."""

    @property
    def is_slow_lane(self) -> bool:
        """One sequence at a time, prompts uncut."""

    def logits(self, batch: Batch) -> Tensor:
        """Compute a batch; return the logits [R, V] after each of its sampled chunks.

        Raises SequenceFailed where it knows the culprit, else what torch raises.
        """

    def release(self, slot: int) -> None:
        """Forget what is kept for a slot."""

    def close(self) -> None:
        """Let go of the model and of all that is kept."""


class PackedForward:
    is_slow_lane = False

    def __init__(self, model: PreTrainedModel) -> None:
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self._model: PreTrainedModel | None = model
        self._device = model.device
        self._keeps_rows = _keeps_rows(model)
        self.cache = KvSlots()

    def logits(self, batch: Batch) -> Tensor:
        ids = [token for chunk in batch.chunks for token in chunk.token_ids]
        positions = [place for chunk in batch.chunks for place in range(chunk.start, chunk.end)]
        inputs = torch.tensor([ids, positions], device=self._device)  # [2, T]
        rows = torch.tensor(_sampled_rows(batch), dtype=torch.long, device=self._device)
        arguments: dict[str, Any] = {"logits_to_keep": rows} if self._keeps_rows else {}
        assert self._model is not None, "the model is closed"
        with attention.step_context(attention.StepContext(self.cache, batch.chunks)):
            logits = self._model(
                input_ids=inputs[:1], position_ids=inputs[1:], use_cache=False, **arguments
            ).logits[0]
        kept: Tensor = logits if self._keeps_rows else logits[rows]
        return kept

    def release(self, slot: int) -> None:
        self.cache.release(slot)

    def close(self) -> None:
        self.cache.clear()
        self._model = None


def _keeps_rows(model: PreTrainedModel) -> bool:
    """Whether the model can leave out the logits of rows that nobody samples."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _sampled_rows(batch: Batch) -> list[int]:
    """Return where in the packed row the last token of each sampled chunk is."""
    rows, end = [], 0
    for chunk in batch.chunks:
        end += len(chunk.token_ids)
        if chunk.is_sampled:
            rows.append(end - 1)
    return rows


class SlowLane:
    is_slow_lane = True

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: PreTrainedModel | None = model
        self._device = model.device
        self._last_row_only = {"logits_to_keep": 1} if _keeps_rows(model) else {}
        self._caches: dict[int, DynamicCache] = {}
        # A recurrent state cannot be wound back. If a step fails after some of its sequences
        # went ahead, their results wait here for the step to be repeated.
        self._last: dict[int, tuple[int, Tensor]] = {}  # slot -> end of its last chunk, logits

    def logits(self, batch: Batch) -> Tensor:
        rows = [(chunk, self._advance(chunk)) for chunk in batch.chunks]
        sampled = [logits for chunk, logits in rows if chunk.is_sampled]
        return torch.stack(sampled) if sampled else torch.empty(0, 1, device=self._device)

    def _advance(self, chunk: Chunk) -> Tensor:
        """Compute one chunk on its sequence's cache; return the logits [V] of its last token."""
        assert self._model is not None, "the model is closed"
        end, logits = self._last.get(chunk.slot, (0, None))
        if logits is not None and end == chunk.end:
            return logits
        if chunk.start == 0:
            self._caches[chunk.slot] = DynamicCache(config=self._model.config)
        try:
            output = self._model(
                input_ids=torch.tensor([chunk.token_ids], device=self._device),
                past_key_values=self._caches[chunk.slot],
                use_cache=True,
                **self._last_row_only,
            )
        except Exception as error:
            # Some layers have taken the tokens and some have not: this cache is lost.
            raise SequenceFailed(chunk.request_id) from error
        last: Tensor = output.logits[0, -1]
        self._last[chunk.slot] = chunk.end, last
        return last

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)
        self._last.pop(slot, None)

    def close(self) -> None:
        self._caches.clear()
        self._last.clear()
        self._model = None
