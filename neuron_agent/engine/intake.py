"""Takes a request in: checks all that could trip the device, and makes of it what a step needs.

The front checks as well, and more kindly; here nothing wrong may pass. It touches no device.
"""

from collections.abc import Callable
from dataclasses import dataclass

from neuron_agent.devices.channel import Submit
from neuron_agent.engine.refusals import RequestRefused
from neuron_agent.engine.sampling.drawing import DrawParameters
from neuron_agent.engine.sampling.edits import EditParameters, InvalidSampling, LogitEdits
from neuron_agent.engine.sampling.row_state import RowState
from neuron_agent.protocol import ErrorCode
from neuron_agent.scheduling.request import Request

MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Intake:
    vocabulary_size: int
    most_tokens: int
    """The longest a sequence may become: by the model, the cache and the operator."""
    fresh_seed: Callable[[], int]

    def request_of(self, submit: Submit, now: float) -> Request:
        """Return the scheduler's side of a request. Raises RequestRefused."""
        self._check_numbers(submit)
        self._check_tokens(submit)
        room = self.most_tokens - len(submit.prompt_ids)
        if room < (0 if submit.wants_embedding else 1):
            raise RequestRefused(
                ErrorCode.CONTEXT_LENGTH_EXCEEDED,
                f"the prompt has {len(submit.prompt_ids)} tokens and the context limit is"
                f" {self.most_tokens}",
            )
        return Request(
            request_id=submit.request_id,
            prompt_ids=tuple(submit.prompt_ids),
            max_tokens=max(1, min(submit.max_tokens, room)),
            stop_ids=frozenset(submit.stop_ids),
            submitted_at=now,
            principal=submit.principal,
            is_embedding=submit.wants_embedding,
        )

    def row_state_of(self, submit: Submit) -> RowState:
        """Return the sampler's side of a request. Raises RequestRefused."""
        asked = submit.sampling
        seed = self.fresh_seed() if asked.seed is None else asked.seed
        try:
            drawing = DrawParameters(
                asked.temperature, asked.top_p, asked.top_k, seed, min_p=asked.min_p
            )
            editing = EditParameters(
                asked.presence_penalty,
                asked.frequency_penalty,
                asked.repetition_penalty,
                asked.logit_bias,
            )
        except InvalidSampling as error:
            raise _invalid(str(error)) from error
        return RowState(
            parameters=drawing,
            num_prompt_tokens=len(submit.prompt_ids),
            stop_ids=tuple(one for one in submit.stop_ids if 0 <= one < self.vocabulary_size),
            edits=None if editing.is_none else LogitEdits(editing, submit.prompt_ids),
            min_tokens=submit.min_tokens,
            num_logprobs=submit.num_logprobs,
        )

    def _check_numbers(self, submit: Submit) -> None:
        if submit.max_tokens < 1 and not submit.wants_embedding:
            raise _invalid("max_tokens must be at least 1")
        if submit.min_tokens < 0:
            raise _invalid("min_tokens must be 0 or more")
        if submit.num_logprobs is not None and not 0 <= submit.num_logprobs <= MAX_LOGPROBS:
            raise _invalid(f"top_logprobs must be from 0 to {MAX_LOGPROBS}")
        if submit.wants_embedding and submit.grammar is not None:
            raise _invalid("an embedding follows no grammar")

    def _check_tokens(self, submit: Submit) -> None:
        """Keep what would trip an assertion on the device from ever getting there."""
        if not submit.prompt_ids:
            raise _invalid("the prompt is empty")
        self._check_range(min(submit.prompt_ids), max(submit.prompt_ids), "the prompt")
        bias = submit.sampling.logit_bias
        if bias:
            self._check_range(min(bias), max(bias), "logit_bias")

    def _check_range(self, lowest: int, highest: int, where: str) -> None:
        if lowest < 0 or highest >= self.vocabulary_size:
            raise _invalid(f"{where} has a token id outside 0..{self.vocabulary_size - 1}")


def _invalid(message: str) -> RequestRefused:
    return RequestRefused(ErrorCode.INVALID_REQUEST, message)
