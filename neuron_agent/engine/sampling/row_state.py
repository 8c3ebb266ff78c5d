"""What the sampler keeps of one request while it runs: how to choose, and what was chosen.

It grows by one token at a time and is never made again from the text; a request that is preempted
and computed anew keeps it. It knows no tensor and no schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from neuron_agent.engine.sampling.drawing import DrawParameters
from neuron_agent.engine.sampling.edits import LogitEdits
from neuron_agent.engine.sampling.grammar import Matcher
from neuron_agent.engine.sampling.sampler import Draw


class GrammarLeft(Exception):
    """A token was chosen that the grammar does not allow: a bug of ours."""


@dataclass(slots=True)
class RowState:
    parameters: DrawParameters
    num_prompt_tokens: int
    stop_ids: Sequence[int] = ()
    """Those that the model has a logit for."""
    edits: LogitEdits | None = None
    min_tokens: int = 0
    num_logprobs: int | None = None
    matcher: Matcher | None = None
    """Where there is one, it alone says when the text may end: `min_tokens` has no say then."""

    def draw_at(self, position: int) -> Draw:
        """Return how to choose the token at this position of the sequence."""
        is_early = position - self.num_prompt_tokens < self.min_tokens
        return Draw(
            self.parameters,
            position,
            edits=self.edits,
            forbidden_ids=self.stop_ids if is_early and self.matcher is None else (),
            num_logprobs=self.num_logprobs,
        )

    def take(self, token_id: int) -> None:
        """Go on behind a chosen token. Raises GrammarLeft if that cannot be."""
        if self.edits is not None:
            self.edits.count(token_id)
        if self.matcher is not None and not self.matcher.take(token_id):
            raise GrammarLeft(self.matcher.error)

    @property
    def is_finished(self) -> bool:
        """The grammar allows nothing more."""
        return self.matcher is not None and self.matcher.is_finished

    @property
    def why_no_token(self) -> str:
        """What to say when nothing is left to choose from."""
        if self.matcher is None:
            return "nothing that may be chosen is left"
        if self.matcher.error is None:
            return "the grammar leaves no token"
        return f"the grammar cannot be followed any further: {self.matcher.error}"
