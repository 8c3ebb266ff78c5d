"""The ways a step goes through a transformers model, behind one contract.

`PackedForward` packs all sequences of a step into one row and attends over our own cache.
`SlowLane` runs one sequence after the other on transformers' own cache: for models whose state is
not plain attention. (`fused` has a third, which needs no transformers' forward.) All know chunks
of token ids and give logits and hidden states; none knows requests.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from neuron_agent.engine.forwards import attention
from neuron_agent.engine.forwards.kv_cache import KvCache
from neuron_agent.engine.forwards.packing import pack_linears
from neuron_agent.scheduling.batch import Batch, Chunk
from neuron_agent.scheduling.pool import KvLayout


class SequenceFailed(Exception):
    """One sequence of the batch is the culprit: its state is spoilt, the others' is not."""

    def __init__(self, request_id: str) -> None:
        super().__init__(f"the forward pass of {request_id} failed")
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Computed:
    """What came of a batch."""

    logits: Tensor
    """[R, V], one row per sampled chunk, in the batch's order."""
    hidden: Tensor
    """[E, H], one row per embedded chunk: what goes into the output head, after the last norm."""


class Forward(Protocol):
    """A model that computes batches. Repeating a batch that failed half-way is allowed."""

    @property
    def layout(self) -> KvLayout: ...

    @property
    def is_slow_lane(self) -> bool:
        """One sequence at a time, prompts uncut."""

    @property
    def block_tokens(self) -> int:
        """Tokens of a cache block; 1 where the cache is not paged."""

    def compute(self, batch: Batch) -> Computed:
        """Compute a batch. Raises SequenceFailed where it knows the culprit, else what torch
        raises."""

    def reserve(self, kv_tokens: int) -> None:
        """Take the cache's memory, once its size is known; nothing where memory follows use."""

    def warm_up(self, max_in_flight: int) -> None:
        """Get ready for so many sequences at once what is slow the first time."""

    def release(self, slot: int) -> None:
        """Forget what is kept for a slot."""

    def close(self) -> None:
        """Let go of the model and of all that is kept."""


# --- what goes in ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedInput:
    """A batch as one row of tokens. `rows` are those of sampled chunks, then of embedded ones."""

    ids: Tensor  # [T]
    positions: Tensor  # [T]
    rows: Tensor  # [R + E]
    num_sampled: int


def pack(batch: Batch, device: torch.device) -> PackedInput:
    """Lay a batch's chunks behind each other; one transfer to the device."""
    ids: list[int] = []
    positions: list[int] = []
    sampled, embedded = [], []
    for chunk in batch.chunks:
        ids += chunk.token_ids
        positions += range(chunk.start, chunk.end)
        if chunk.is_sampled:
            sampled.append(len(ids) - 1)
        elif chunk.is_embedded:
            embedded.append(len(ids) - 1)
    numbers = torch.tensor(ids + positions + sampled + embedded, dtype=torch.long).to(device)
    return PackedInput(
        numbers[: len(ids)],
        numbers[len(ids) : 2 * len(ids)],
        numbers[2 * len(ids) :],
        len(sampled),
    )


class HeadInput:
    """Sees what goes into a model's output head: the last hidden state, normed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._seen: Tensor | None = None
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self._handle = head.register_forward_pre_hook(self._see) if head is not None else None

    def _see(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen = inputs[0]

    def take(self) -> Tensor | None:
        """Return the input of the last call [1, N, H]; None if the head was not called."""
        seen, self._seen = self._seen, None
        return seen

    def close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._seen = None


def _keeps_rows(model: PreTrainedModel) -> bool:
    """Whether the model can leave out the logits of rows that nobody samples."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _cache_name(model: PreTrainedModel) -> str:
    """What a model calls the argument for its cache: pure recurrences have a name of their own."""
    takes = inspect.signature(model.forward).parameters
    return "cache_params" if "cache_params" in takes else "past_key_values"


# --- all sequences at once ---------------------------------------------------------------------


class PackedForward:
    """transformers' forward, with our attention over `cache`."""

    is_slow_lane = False

    def __init__(self, model: PreTrainedModel, cache: KvCache) -> None:
        attention.register()
        model.set_attn_implementation(attention.NAME)
        self.cache = cache
        self.windows: dict[int, int | None] = {}
        """What each layer asked for in the last step."""
        self._model: PreTrainedModel | None = model
        self._device = model.device
        self._keeps_rows = _keeps_rows(model)
        self._head_input = HeadInput(model)

    @property
    def layout(self) -> KvLayout:
        return self.cache.layout

    @property
    def block_tokens(self) -> int:
        return self.cache.block_tokens

    def compute(self, batch: Batch) -> Computed:
        packed = pack(batch, self._device)
        arguments: dict[str, Any] = {"logits_to_keep": packed.rows} if self._keeps_rows else {}
        assert self._model is not None, "the model is closed"
        context = attention.StepContext(self.cache)
        self.cache.begin(batch)
        with attention.step_context(context):
            logits = self._model(
                input_ids=packed.ids.unsqueeze(0),
                position_ids=packed.positions.unsqueeze(0),
                use_cache=False,
                **arguments,
            ).logits[0]  # [R + E, V], or [T, V] if all rows come
        self.windows = context.windows
        hidden = self._head_input.take()  # [1, as many rows, H]
        if not self._keeps_rows:
            logits = logits[packed.rows]
            hidden = hidden[:, packed.rows] if hidden is not None else None
        return _computed(batch, logits, hidden, packed.num_sampled)

    def settle(self) -> None:
        """Lay the weights out for the device; the head may be another module afterwards."""
        assert self._model is not None, "the model is closed"
        pack_linears(self._model)
        self._head_input.close()
        self._head_input = HeadInput(self._model)

    def reserve(self, kv_tokens: int) -> None:
        self.cache.reserve(kv_tokens)

    def warm_up(self, max_in_flight: int) -> None:
        """Nothing: its first step is as fast as the others."""

    def release(self, slot: int) -> None:
        self.cache.release(slot)

    def close(self) -> None:
        self.cache.clear()
        self._head_input.close()
        self._model = None


def _computed(batch: Batch, logits: Tensor, hidden: Tensor | None, num_sampled: int) -> Computed:
    embedded = batch.embedded
    if hidden is None:
        if embedded:
            raise SequenceFailed(embedded[0].request_id) from _no_hidden_state()
        return Computed(logits, logits.new_empty(0, 0))
    return Computed(logits[:num_sampled], hidden[0, num_sampled:])


def _no_hidden_state() -> Exception:
    return ValueError("this model shows no hidden state before its output head")


# --- one sequence after the other --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Advanced:
    """Where a sequence stands in the slow lane, and what its last token gave."""

    end: int
    logits: Tensor  # [V]
    hidden: Tensor | None  # [H]


class SlowLane:
    """transformers' forward on transformers' own cache."""

    is_slow_lane = True
    layout = KvLayout.PRIVATE
    block_tokens = 1

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: PreTrainedModel | None = model
        self._device = model.device
        self._last_row_only = {"logits_to_keep": 1} if _keeps_rows(model) else {}
        self._cache_name = _cache_name(model)
        self._caches: dict[int, DynamicCache] = {}
        # A recurrent state cannot be wound back. If a step fails after some of its sequences
        # went ahead, their results wait here for the step to be repeated.
        self._last: dict[int, _Advanced] = {}  # by slot
        self._head_input = HeadInput(model)

    def compute(self, batch: Batch) -> Computed:
        rows = [(chunk, self._advance(chunk)) for chunk in batch.chunks]
        sampled = [row.logits for chunk, row in rows if chunk.is_sampled]
        embedded = [_hidden_of(chunk, row) for chunk, row in rows if chunk.is_embedded]
        last = rows[-1][1]
        return Computed(
            torch.stack(sampled) if sampled else last.logits.new_empty(0, *last.logits.shape),
            torch.stack(embedded) if embedded else last.logits.new_empty(0, 0),
        )

    def _advance(self, chunk: Chunk) -> _Advanced:
        """Compute one chunk on its sequence's cache."""
        assert self._model is not None, "the model is closed"
        last = self._last.get(chunk.slot)
        if last is not None and last.end == chunk.end:
            return last
        if chunk.start == 0:
            self._caches[chunk.slot] = DynamicCache(config=self._model.config)
        try:
            output = self._model(
                input_ids=torch.tensor([chunk.token_ids], device=self._device),
                use_cache=True,
                **{self._cache_name: self._caches[chunk.slot]},
                **self._last_row_only,
            )
        except Exception as error:
            # Some layers have taken the tokens and some have not: this cache is lost.
            raise SequenceFailed(chunk.request_id) from error
        hidden = self._head_input.take()  # [1, n, H]
        advanced = _Advanced(
            chunk.end, output.logits[0, -1], hidden[0, -1] if hidden is not None else None
        )
        self._last[chunk.slot] = advanced
        return advanced

    def reserve(self, kv_tokens: int) -> None:
        """Nothing: memory follows use."""

    def warm_up(self, max_in_flight: int) -> None:
        """Nothing: its first step is as fast as the others."""

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)
        self._last.pop(slot, None)

    def close(self) -> None:
        self._caches.clear()
        self._last.clear()
        self._head_input.close()
        self._model = None


def _hidden_of(chunk: Chunk, advanced: _Advanced) -> Tensor:
    if advanced.hidden is None:
        raise SequenceFailed(chunk.request_id) from _no_hidden_state()
    return advanced.hidden
