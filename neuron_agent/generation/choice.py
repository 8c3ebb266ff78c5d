"""One choice of a request: the device's outputs in, events out.

    token ids -> text -> reasoning, calls and what is said -> stop strings -> events

Stop strings end what the model says, not what it thinks or calls: they are about the answer that
the caller reads. It is sans-IO: it neither asks the device nor reads a clock, except that it is
told when outputs come.
"""

from collections.abc import Callable
from typing import assert_never

from neuron_agent.devices.channel import Output
from neuron_agent.generation.logprobs import LogprobTrack, pair
from neuron_agent.generation.plan import Plan
from neuron_agent.sources.model_text import ModelText
from neuron_agent.text.detokenizer import Detokenizer
from neuron_agent.text.output_parser import OutputParser
from neuron_agent.text.pieces import CallArguments, CallStarted, Piece, Said, Thought
from neuron_agent.text.stop import StopScanner
from neuron_agent.wire.events import (
    ChatEvent,
    ChoiceEvent,
    ChoiceFinished,
    ReasoningDelta,
    TextDelta,
    Tokens,
    ToolArgumentsDelta,
    ToolCallStarted,
)

QUEUED, PREFILL, DECODE = "queued", "prefill", "decode"
STAGES = (QUEUED, PREFILL, DECODE)


class Choice:
    """Feed outputs with `take` until `finish_reason` is there; then the device may stop."""

    def __init__(
        self, index: int, plan: Plan, text: ModelText, new_call_id: Callable[[], str]
    ) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.stage = QUEUED
        self.prefill_done = 0
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.cached_tokens = 0
        self.queue_ms = 0.0
        self.prefill_ms = 0.0
        self._plan = plan
        self._new_call_id = new_call_id
        self._detokenizer = Detokenizer(text.tokenizer)
        self._stop = StopScanner(plan.stops)
        self._parser = _parser(plan, text)
        self._logprobs = (
            None if plan.num_logprobs is None else LogprobTrack(self._detokenizer.token_bytes)
        )
        self._num_calls = 0

    @property
    def stop_sequence(self) -> str | None:
        """The stop string that ended it."""
        return self._stop.hit

    def take(self, output: Output) -> list[ChatEvent]:
        """Return the events of an output whose finish is none, stop or length."""
        self._note(output)
        events: list[ChatEvent] = []
        if output.token_ids:
            events.append(Tokens(tuple(output.token_ids), self.index))
            events += self._take_tokens(output)
        if output.finish is not None and self.finish_reason is None:
            events += self._end(output.finish)
        if output.num_generated is not None:
            self.num_tokens = output.num_generated
        if self.finish_reason is not None:
            events.append(ChoiceFinished(self.finish_reason, self.index))
        return events

    def _note(self, output: Output) -> None:
        """Keep what an output says beside its tokens."""
        self.num_tokens += len(output.token_ids)
        if output.prefill_done is not None and self.stage != DECODE:
            self.stage, self.prefill_done = PREFILL, output.prefill_done
        if output.token_ids:
            self.stage = DECODE
        self.cached_tokens = output.cached_tokens or self.cached_tokens
        self.queue_ms = output.queue_ms or self.queue_ms
        self.prefill_ms = output.prefill_ms or self.prefill_ms

    def _take_tokens(self, output: Output) -> list[ChoiceEvent]:
        was_reasoning = self._is_reasoning
        if self._logprobs is None:
            events = self._read(self._detokenizer.feed(output.token_ids))
        else:
            events = self._take_with_logprobs(output, self._logprobs)
        if was_reasoning or self._is_reasoning:
            self.num_reasoning_tokens += len(output.token_ids)
        return events

    def _take_with_logprobs(self, output: Output, track: LogprobTrack) -> list[ChoiceEvent]:
        """Go token by token, to know which completed what."""
        events: list[ChoiceEvent] = []
        for token_id, logprob in pair(output.token_ids, output.logprobs):
            text = self._detokenizer.feed([token_id])
            track.read(token_id, logprob, len(text))
            events += self._read(text)
        return events

    def _end(self, finish: str) -> list[ChoiceEvent]:
        """Return what was held back, and note why it ends."""
        events = self._read(self._detokenizer.finish())
        if self._parser is not None:
            events += self._show(self._parser.finish())
        if self.finish_reason is None:
            events += self._flush()
            self.finish_reason = self._reason(finish)
        return events

    def _reason(self, finish: str) -> str:
        return "tool_calls" if finish == "stop" and self._num_calls else finish

    # --- from text to events ----------------------------------------------------------------------

    @property
    def _is_reasoning(self) -> bool:
        return self._parser is not None and self._parser.is_reasoning

    def _read(self, text: str) -> list[ChoiceEvent]:
        if not text or self.finish_reason is not None:
            return []
        return self._show(self._parser.feed(text) if self._parser else [Said(text)])

    def _show(self, pieces: list[Piece]) -> list[ChoiceEvent]:
        events: list[ChoiceEvent] = []
        for piece in pieces:
            if self.finish_reason is not None:
                break
            events += self._event_of(piece)
        return events

    def _event_of(self, piece: Piece) -> list[ChoiceEvent]:
        match piece:
            case Said(text):
                return self._say(text)
            case Thought(text):
                self._unsaid()
                return [ReasoningDelta(text, self.index)]
            case CallStarted(index, name):
                return self._start_call(index, name)
            case CallArguments(index, text):
                self._unsaid()
                return [ToolArgumentsDelta(index, text, self.index)]
            case _:
                assert_never(piece)

    def _say(self, text: str) -> list[ChoiceEvent]:
        if self._logprobs is not None:
            self._logprobs.said(len(text))
        shown = self._stop.feed(text)
        if self._stop.hit is not None:
            self.finish_reason = self._reason("stop")
        return self._text(shown)

    def _start_call(self, index: int, name: str) -> list[ChoiceEvent]:
        assert self._plan.reading is not None
        events = self._flush()  # a stop string does not go on behind a call
        self._unsaid()
        if index > 0 and not self._plan.reading.allows_parallel_calls:
            self.finish_reason = self._reason("stop")
            return events
        self._num_calls += 1
        return [*events, ToolCallStarted(index, self._new_call_id(), name, self.index)]

    def _flush(self) -> list[ChoiceEvent]:
        return self._text(self._stop.finish())

    def _text(self, shown: str) -> list[ChoiceEvent]:
        if not shown:
            return []
        logprobs = () if self._logprobs is None else self._logprobs.take(len(shown))
        return [TextDelta(shown, self.index, logprobs)]

    def _unsaid(self) -> None:
        if self._logprobs is not None:
            self._logprobs.unsaid()


def _parser(plan: Plan, text: ModelText) -> OutputParser | None:
    """Return the parser of an output in which something is to be read, else None."""
    reading = plan.reading
    if reading is None or (text.format.reasoning is None and not reading.tools):
        return None
    return text.format.new_parser(starts_reasoning=reading.starts_reasoning, tools=reading.tools)
