"""The fields that chat and text completions share: how to choose tokens, and when to stop.

Every value is checked against OpenAI's range, or the one its inventor gave it, and refused by
name. None means: as the model has it. It knows no model and no vocabulary.
"""

import msgspec

from neuron_agent.errors import BadRequest
from neuron_agent.wire.json_body import Body, check_range

MAX_STOPS = 32
MAX_STOP_CHARACTERS = 512
MAX_SEED = 2**63 - 1
MAX_TOKENS = 2**31 - 1
MAX_TOKEN_ID = 2**31 - 1
MAX_CHOICES = 16
MAX_BIASES = 10_000
MAX_STOP_TOKENS = 256
MAX_LOGPROBS = 20
SMALLEST_REPETITION_PENALTY = 1e-3
LARGEST_REPETITION_PENALTY = 100.0


class SamplingBody(Body, frozen=True):
    """The fields as they come, with the types they must have."""

    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None


class SamplingFields(msgspec.Struct, frozen=True):
    """Fields that make sense."""

    max_tokens: int | None = None
    num_choices: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignores_stop_tokens: bool = False
    min_tokens: int = 0


def check_sampling(body: SamplingBody) -> SamplingFields:
    """Return the fields of a body. Raises BadRequest that names the one that makes no sense."""
    _check_ranges(body)
    return SamplingFields(
        max_tokens=body.max_tokens,
        num_choices=1 if body.n is None else body.n,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(body.top_k, 0),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_biases(body.logit_bias or {}),
        seed=None if body.seed is None else body.seed & MAX_SEED,
        stops=_stops(body.stop),
        stop_token_ids=_stop_tokens(body.stop_token_ids or []),
        ignores_stop_tokens=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
    )


def _check_ranges(body: SamplingBody) -> None:
    check_range("max_tokens", body.max_tokens, 1, MAX_TOKENS)
    check_range("n", body.n, 1, MAX_CHOICES)
    check_range("temperature", body.temperature, 0, 2)
    check_range("top_p", body.top_p, 0, 1)
    check_range("top_k", body.top_k, -1, MAX_TOKENS)  # -1 is how others write "off"
    check_range("min_p", body.min_p, 0, 1)
    check_range("presence_penalty", body.presence_penalty, -2, 2)
    check_range("frequency_penalty", body.frequency_penalty, -2, 2)
    check_range(
        "repetition_penalty",
        body.repetition_penalty,
        SMALLEST_REPETITION_PENALTY,
        LARGEST_REPETITION_PENALTY,
    )
    check_range("seed", body.seed, -MAX_SEED - 1, MAX_SEED)
    check_range("min_tokens", body.min_tokens, 0, body.max_tokens or MAX_TOKENS)


def _biases(asked: dict[str, float]) -> dict[int, float]:
    if len(asked) > MAX_BIASES:
        raise BadRequest(f"logit_bias takes at most {MAX_BIASES} tokens", param="logit_bias")
    found = {}
    for token, bias in asked.items():
        is_id = token.isascii() and token.isdecimal() and len(token) <= 10
        if not is_id or int(token) > MAX_TOKEN_ID:
            raise BadRequest(f"logit_bias: {token[:20]!r} is not a token id", param="logit_bias")
        check_range("logit_bias", bias, -100, 100)
        found[int(token)] = bias
    return found


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MAX_STOPS:
        raise BadRequest(f"stop takes at most {MAX_STOPS} strings", param="stop")
    if any(not text or len(text) > MAX_STOP_CHARACTERS for text in stops):
        raise BadRequest(
            f"each stop string has 1 to {MAX_STOP_CHARACTERS} characters", param="stop"
        )
    return stops


def _stop_tokens(token_ids: list[int]) -> tuple[int, ...]:
    if len(token_ids) > MAX_STOP_TOKENS:
        raise BadRequest(
            f"stop_token_ids takes at most {MAX_STOP_TOKENS} tokens", param="stop_token_ids"
        )
    for token_id in token_ids:
        check_range("stop_token_ids", token_id, 0, MAX_TOKEN_ID)
    return tuple(token_ids)
