"""One loaded model that generates: `step()` does one forward pass and returns what came of it.

schedule -> forward -> sample -> update -> outputs. An engine lives on its device thread alone. It
knows neither the mailbox nor which errors mean what: whatever a step raises goes to the caller,
who may give up one request and step again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor

from neuron_agent.devices.channel import ModelReport, Output, Submit
from neuron_agent.engine.forwards.forward import Forward, SequenceFailed
from neuron_agent.engine.intake import Intake
from neuron_agent.engine.outputs import (
    embedding_output,
    end_output,
    prefill_output,
    token_output,
)
from neuron_agent.engine.refusals import RequestRefused
from neuron_agent.engine.sampling.compiling import CompilingRequests, Refused
from neuron_agent.engine.sampling.grammar import GrammarCompiler, GrammarRefused, masks_for
from neuron_agent.engine.sampling.row_state import RowState
from neuron_agent.engine.sampling.sampler import Choice, Draw, RowFailure, sample
from neuron_agent.engine.speed import SpeedMeter
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.batch import Batch, Chunk
from neuron_agent.scheduling.limits import SchedulerLimits, limits_for
from neuron_agent.scheduling.pool import build_pool
from neuron_agent.scheduling.request import FinishReason, Request
from neuron_agent.scheduling.scheduler import Advance, Scheduler

COMPILING_WAIT_SECONDS = 0.003
"""How long a step with nothing to compute waits for a grammar: commands wait as long."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineLimits:
    context_tokens: int
    kv_tokens: int
    vocabulary_size: int
    max_in_flight: int
    memory_bytes: int = 0
    needed_bytes: int = 0
    dtype: str = ""
    quant: str | None = None


@dataclass(frozen=True, slots=True)
class _Results:
    """What a batch gave each of its requests."""

    choices: Mapping[str, Choice | RowFailure]
    embeddings: Mapping[str, list[float] | None]
    """None where it is not finite."""

    @property
    def token_ids(self) -> dict[str, int]:
        choices = self.choices.items()
        return {name: one.token_id for name, one in choices if isinstance(one, Choice)}


class Engine:
    """Raises ValueError if the limits leave no room for a single token."""

    def __init__(
        self,
        model_id: str,
        forward: Forward,
        limits: EngineLimits,
        *,
        clock: Callable[[], float],
        fresh_seed: Callable[[], int],
        scheduling: SchedulerLimits | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.model_id = model_id
        self.limits = limits
        self._forward = forward
        self._clock = clock
        pool = build_pool(
            forward.layout,
            max_running=limits.max_in_flight,
            capacity_tokens=limits.kv_tokens,
            block_tokens=forward.block_tokens,
        )
        self._scheduler = Scheduler(pool, scheduling or limits_for(forward.layout))
        most_tokens = min(limits.context_tokens, pool.capacity_tokens)
        self._intake = Intake(limits.vocabulary_size, most_tokens, fresh_seed)
        self._compiling = CompilingRequests(grammars)
        self._rows: dict[str, RowState] = {}
        self._batch: Batch | None = None  # of the running or last step
        self._culprit: str | None = None
        self._speed = SpeedMeter(clock())
        self._num_nan_logits = 0

    @property
    def is_slow_lane(self) -> bool:
        return self._forward.is_slow_lane

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or bool(self._compiling)

    # --- requests ------------------------------------------------------------------------------

    def add(self, submit: Submit) -> None:
        """Queue a request. Raises RequestRefused if it can never be served."""
        now = self._clock()
        request = self._intake.request_of(submit, now)
        state = self._intake.row_state_of(submit)
        if submit.grammar is None:
            self._queue(request, state)
            return
        try:
            self._compiling.add(request, state, submit.grammar, now)
        except GrammarRefused as error:
            raise RequestRefused(ErrorCode.INVALID_REQUEST, str(error)) from error

    def cancel(self, request_id: str) -> Output | None:
        """Take a request out at once; None if it is not here any more."""
        request = self._compiling.cancel(request_id)
        if request is not None:
            return end_output(request, FinishReason.CANCELLED)
        request = self._scheduler.cancel(request_id)
        self._release_freed()
        return self._ended(request) if request else None

    def _queue(self, request: Request, state: RowState) -> None:
        self._scheduler.add(request)
        self._rows[request.request_id] = state

    # --- the step ------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch. Raises what the device raises; nothing is lost then but the step."""
        started_at = self._clock()
        self._culprit = self._batch = None
        refused = self._settle_compiling(started_at)
        if refused:
            return refused  # at once: a forward that fails must not take them with it
        self._batch = batch = self._scheduler.schedule(started_at)
        self._release_freed()
        if batch is None:
            if self._compiling:
                self._compiling.wait(COMPILING_WAIT_SECONDS)
            return []
        outputs = self._record(batch, self._compute(batch))
        self._release_freed()
        self._speed.count(batch, self._clock() - started_at)
        return outputs

    def give_up_one(self, code: ErrorCode, message: str) -> Output | None:
        """After a step raised: end one request of it, so that the next step can do without.

        The culprit if it is known, else the youngest. None if the step had no request.
        """
        name = self._culprit
        if name is None and self._batch is not None:
            youngest = self._scheduler.youngest_of(self._batch)
            name = youngest.request_id if youngest else None
        request = self._scheduler.finish(name, FinishReason.ERROR) if name else None
        self._release_freed()
        return self._ended(request, code, message) if request else None

    def drop_prefixes(self) -> None:
        """Give up all memory that is kept only for reuse."""
        self._scheduler.drop_prefixes()
        self._release_freed()

    def _settle_compiling(self, now: float) -> list[Output]:
        """Queue the requests whose grammar is ready; end those whose grammar is no good."""
        if not self._compiling:
            return []
        outputs = []
        for settled in self._compiling.settle(now):
            if isinstance(settled, Refused):
                code = ErrorCode.REQUEST_FAILED if settled.is_fault else ErrorCode.INVALID_REQUEST
                outputs.append(end_output(settled.request, FinishReason.ERROR, code, settled.why))
            else:
                self._queue(settled.request, settled.state)
        return outputs

    def _compute(self, batch: Batch) -> _Results:
        """Run the batch through the model, and choose."""
        try:
            computed = self._forward.compute(batch)
            choices = self._choose(computed.logits, batch.sampled) if batch.sampled else {}
        except SequenceFailed as error:
            self._culprit = error.request_id
            raise
        names = [chunk.request_id for chunk in batch.embedded]
        embeddings = dict(zip(names, _unit_vectors(computed.hidden), strict=True)) if names else {}
        return _Results(choices, embeddings)

    def _choose(self, logits: Tensor, sampled: tuple[Chunk, ...]) -> dict[str, Choice | RowFailure]:
        states = [self._rows[chunk.request_id] for chunk in sampled]
        draws = [_draw(state, chunk) for state, chunk in zip(states, sampled, strict=True)]
        matchers = [(row, one.matcher) for row, one in enumerate(states) if one.matcher is not None]
        choices = sample(logits, draws, masks_for(matchers, logits.shape[1]))
        return dict(zip((chunk.request_id for chunk in sampled), choices, strict=True))

    def _release_freed(self) -> None:
        for slot in self._scheduler.take_freed_slots():
            self._forward.release(slot)

    # --- what came of it -----------------------------------------------------------------------

    def _record(self, batch: Batch, results: _Results) -> list[Output]:
        """Tell the schedule what came out, and say what each request gets. Raises nothing.

        An embedding that is no numbers ends its request first, so that nothing of it is reused.
        """
        outputs = [
            self._without_numbers(name) for name, one in results.embeddings.items() if one is None
        ]
        now = self._clock()
        advances = self._scheduler.update(batch, results.token_ids, now)
        outputs += [output for one in advances if (output := self._advanced(one, results, now))]
        outputs += [
            self._without_token(name, failure)
            for name, failure in results.choices.items()
            if isinstance(failure, RowFailure)
        ]
        return outputs

    def _advanced(self, advance: Advance, results: _Results, now: float) -> Output | None:
        request = advance.request
        if request.is_embedding and request.finish:
            self._rows.pop(request.request_id)
            return embedding_output(request, results.embeddings[request.request_id], now)
        if not advance.is_sampled:
            # A preempted request is computed again silently: its caller has its tokens already.
            return None if request.generated_ids else prefill_output(request)
        choice = results.choices[request.request_id]
        assert isinstance(choice, Choice), "it advanced"
        return self._with_token(advance, choice)

    def _with_token(self, advance: Advance, choice: Choice) -> Output:
        request = advance.request
        finish = request.finish
        if finish is not FinishReason.STOP:  # by a stop token, which is no part of the text
            state = self._rows[request.request_id]
            try:
                state.take(choice.token_id)
                is_complete = state.is_finished
            except Exception as error:
                # The device has no part in this state, and the others' tokens must get out.
                log.error("row_state_failed", model=self.model_id, exc_info=error)
                return self._fail(request, "the engine failed on this request")
            if is_complete:
                self._scheduler.finish(request.request_id, FinishReason.STOP)
                finish = FinishReason.STOP
        if finish:
            self._rows.pop(request.request_id)
        return token_output(request, finish, advance.token_id, choice.logprob)

    def _without_token(self, request_id: str, failure: RowFailure) -> Output:
        if failure is RowFailure.NOT_FINITE:
            return self._without_numbers(request_id)
        state = self._rows[request_id]
        return self._fail(self._finished(request_id), state.why_no_token)

    def _without_numbers(self, request_id: str) -> Output:
        self._num_nan_logits += 1
        message = "the model gave no finite numbers for this request"
        return self._fail(self._finished(request_id), message)

    def _finished(self, request_id: str) -> Request:
        request = self._scheduler.finish(request_id, FinishReason.ERROR)
        assert request is not None, "it was in the batch"
        return request

    def _fail(self, request: Request, message: str) -> Output:
        self._scheduler.finish(request.request_id, FinishReason.ERROR)
        return self._ended(request, ErrorCode.REQUEST_FAILED, message)

    def _ended(
        self, request: Request, code: ErrorCode | None = None, message: str | None = None
    ) -> Output:
        self._rows.pop(request.request_id, None)
        return end_output(request, request.finish, code, message)

    # --- the whole -----------------------------------------------------------------------------

    def report(self) -> ModelReport:
        """Say what the engine is doing. Rates are those since the last report."""
        rates = self._speed.take(self._clock())
        return ModelReport(
            model_id=self.model_id,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting + len(self._compiling),
            kv_used_ratio=self._scheduler.kv_used_ratio,
            prefix_hit_ratio=self._scheduler.prefix_hit_ratio,
            tok_s_prefill=rates.prefill_tokens_per_second,
            tok_s_decode=rates.decode_tokens_per_second,
            preemptions=self._scheduler.num_preemptions,
            nan_logits=self._num_nan_logits,
            step_seconds_prefill=rates.prefill_step_seconds,
            step_seconds_decode=rates.decode_step_seconds,
        )

    def check_integrity(self) -> None:
        """Raise IntegrityError if capacity was leaked."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        """Let go of the model and its cache."""
        self._compiling.close()
        self._forward.close()


def _draw(state: RowState, chunk: Chunk) -> Draw:
    try:
        return state.draw_at(chunk.end)
    except Exception as error:
        # Only this request's state took part: it is the culprit.
        raise SequenceFailed(chunk.request_id) from error


def _unit_vectors(hidden: Tensor) -> list[list[float] | None]:
    """Scale hidden states [E, H] to length 1; None for a row that is not finite."""
    rows: list[list[float]] = F.normalize(hidden.float(), dim=-1).tolist()
    return [row if math.isfinite(math.fsum(row)) else None for row in rows]
