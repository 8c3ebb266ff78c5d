"""One loaded model that generates: `step()` does one forward pass and returns what came of it.

schedule -> forward -> sample -> update -> outputs. An engine lives on its device thread alone. It
knows neither the mailbox nor which errors mean what: whatever a step raises goes to the caller,
who may give up one request and step again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from neuron_agent.devices.channel import ModelReport, Output, Submit
from neuron_agent.engine.forward import Forward, SequenceFailed
from neuron_agent.engine.refusals import RequestRefused
from neuron_agent.engine.sampler import Draw, InvalidSampling, SamplingParameters, sample
from neuron_agent.engine.speed import SpeedMeter
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.batch import Batch
from neuron_agent.scheduling.request import FinishReason, Request
from neuron_agent.scheduling.scheduler import Advance, Scheduler, SchedulerLimits
from neuron_agent.scheduling.slots import SlotPool


@dataclass(frozen=True, slots=True)
class EngineLimits:
    context_tokens: int
    kv_tokens: int
    vocabulary_size: int
    max_in_flight: int
    memory_bytes: int = 0
    needed_bytes: int = 0
    dtype: str = ""


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
    ) -> None:
        self.model_id = model_id
        self.limits = limits
        self._forward = forward
        self._clock = clock
        self._fresh_seed = fresh_seed
        self._scheduler = Scheduler(
            SlotPool(limits.max_in_flight, limits.kv_tokens),
            scheduling or SchedulerLimits(whole_prompts=forward.is_slow_lane),
        )
        self._parameters: dict[str, SamplingParameters] = {}
        self._batch: Batch | None = None  # of the running or last step
        self._culprit: str | None = None
        self._speed = SpeedMeter(clock())
        self._num_nan_logits = 0

    @property
    def is_slow_lane(self) -> bool:
        return self._forward.is_slow_lane

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    # --- requests ------------------------------------------------------------------------------

    def add(self, submit: Submit) -> None:
        """Queue a request. Raises RequestRefused if it can never be served."""
        parameters = self._checked_parameters(submit)
        self._check_tokens(submit)
        room = self.limits.context_tokens - len(submit.prompt_ids)
        if room < 1:
            raise RequestRefused(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {len(submit.prompt_ids)} tokens and the context limit is"
                f" {self.limits.context_tokens}",
            )
        self._parameters[submit.request_id] = parameters
        self._scheduler.add(
            Request(
                request_id=submit.request_id,
                prompt_ids=tuple(submit.prompt_ids),
                max_tokens=min(submit.max_tokens, room),
                stop_ids=frozenset(submit.stop_ids),
                submitted_at=self._clock(),
            )
        )

    def cancel(self, request_id: str) -> Output | None:
        """Take a request out at once; None if it is not here any more."""
        request = self._scheduler.cancel(request_id)
        self._release_freed()
        return self._ended(request) if request else None

    def _checked_parameters(self, submit: Submit) -> SamplingParameters:
        asked = submit.sampling
        seed = self._fresh_seed() if asked.seed is None else asked.seed
        try:
            return SamplingParameters(asked.temperature, asked.top_p, asked.top_k, seed)
        except InvalidSampling as error:
            raise RequestRefused(ErrorCode.INVALID_REQUEST, str(error)) from error

    def _check_tokens(self, submit: Submit) -> None:
        """Keep what would trip an assertion on the device from ever getting there."""
        if not submit.prompt_ids:
            raise RequestRefused(ErrorCode.INVALID_REQUEST, "the prompt is empty")
        if submit.max_tokens < 1:
            raise RequestRefused(ErrorCode.INVALID_REQUEST, "max_tokens must be at least 1")
        if min(submit.prompt_ids) < 0 or max(submit.prompt_ids) >= self.limits.vocabulary_size:
            raise RequestRefused(
                ErrorCode.INVALID_REQUEST,
                f"the prompt has a token id outside 0..{self.limits.vocabulary_size - 1}",
            )

    # --- the step ------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch. Raises what the device raises; nothing is lost then but the step."""
        started_at = self._clock()
        self._culprit = None
        self._batch = batch = self._scheduler.schedule(started_at)
        self._release_freed()
        if batch is None:
            return []
        chosen = self._choose(batch)
        now = self._clock()
        advances = self._scheduler.update(batch, _tokens_of(chosen), now)
        outputs = [output for advance in advances if (output := self._advanced(advance))]
        outputs += [self._without_logits(name) for name, token in chosen.items() if token is None]
        self._release_freed()
        self._speed.count(batch, now - started_at)
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

    def _choose(self, batch: Batch) -> dict[str, int | None]:
        """Run the batch through the model; return each sampled request's token, None for NaN."""
        try:
            logits = self._forward.logits(batch)  # [R, V]
        except SequenceFailed as error:
            self._culprit = error.request_id
            raise
        sampled = batch.sampled
        draws = [Draw(self._parameters[chunk.request_id], chunk.end) for chunk in sampled]
        tokens = sample(logits, draws) if sampled else []
        return dict(zip((chunk.request_id for chunk in sampled), tokens, strict=True))

    def _release_freed(self) -> None:
        for slot in self._scheduler.take_freed_slots():
            self._forward.release(slot)

    # --- outputs -------------------------------------------------------------------------------

    def _advanced(self, advance: Advance) -> Output | None:
        request = advance.request
        if not advance.is_sampled:
            # A preempted request is computed again silently: its caller has its tokens already.
            return None if request.generated_ids else _prefilling(request)
        if request.finish:
            self._parameters.pop(request.request_id)
        num_generated = len(request.generated_ids)
        is_first = num_generated == 1
        return Output(
            request.request_id,
            [] if advance.token_id is None else [advance.token_id],
            finish=request.finish,
            prefill_done=len(request.prompt_ids) if is_first else None,
            cached_tokens=0 if is_first else None,
            queue_ms=_ms(request.submitted_at, request.admitted_at) if is_first else None,
            prefill_ms=_ms(request.admitted_at, request.first_token_at) if is_first else None,
            num_generated=num_generated if request.finish else None,
        )

    def _without_logits(self, request_id: str) -> Output:
        self._num_nan_logits += 1
        request = self._scheduler.finish(request_id, FinishReason.ERROR)
        assert request is not None, "a sampled request is running"
        return self._ended(
            request, ErrorCode.REQUEST_FAILED, "the model gave no finite numbers for this request"
        )

    def _ended(
        self, request: Request, code: ErrorCode | None = None, message: str | None = None
    ) -> Output:
        self._parameters.pop(request.request_id, None)
        return Output(
            request.request_id,
            [],
            finish=request.finish,
            error_code=code,
            error=message,
            num_generated=len(request.generated_ids),
        )

    # --- the whole -----------------------------------------------------------------------------

    def report(self) -> ModelReport:
        """Say what the engine is doing. Rates are those since the last report."""
        rates = self._speed.take(self._clock())
        return ModelReport(
            model_id=self.model_id,
            running=self._scheduler.num_running,
            waiting=self._scheduler.num_waiting,
            kv_used_ratio=self._scheduler.kv_used_ratio,
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
        self._forward.close()


def _prefilling(request: Request) -> Output:
    return Output(request.request_id, [], prefill_done=request.num_computed)


def _tokens_of(chosen: dict[str, int | None]) -> dict[str, int]:
    return {request_id: token for request_id, token in chosen.items() if token is not None}


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else (end - start) * 1000
