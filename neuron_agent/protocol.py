"""The REST messages between Cortex and a neuron, and the control frames in a neuron's streams.

This is the one file both sides import. It is plain data: it knows no HTTP library, no Django and
no torch, and importing it costs microseconds. Both sides encode and decode these classes with
msgspec; unknown fields are ignored, so that a newer neuron can talk to an older Cortex.

Sizes on the wire are megabytes (1 MB = 2**20 bytes), as operators of the neuron know them.
"""

from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_PORT = 13131

FRAMES_HEADER = "x-cortex-frames"
"""A caller that sends `1` gets control frames in its stream; with `ids`, token ids among them."""
PRINCIPAL_HEADER = "x-cortex-principal"
"""On whose behalf the gateway calls: the key of fair sharing. Absent = anonymous."""
REQUEST_ID_HEADER = "x-request-id"

CONTROL_FRAME_PREFIX = b": cortex "
"""A control frame is the SSE comment `: cortex {json}` followed by a blank line."""


IN_SITU_QUANTS = ("int8",)
"""What a neuron quantises weights to by itself; any other `quant` names a GGUF file's."""


class ModelPhase(StrEnum):
    """Where a model is on its neuron. The names are those of a placement's phases."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    RECOVERING = "recovering"
    DRAINING = "draining"
    UNLOADING = "unloading"
    FAILED = "failed"


class ErrorCode(StrEnum):
    """`error.code` of a neuron's answers, as far as Cortex acts on them."""

    # 422 of /models/load: the load cannot work as asked.
    REPO_FETCH_FAILED = "repo_fetch_failed"
    EMPTY_REPO = "empty_repo"
    QUANT_NOT_FOUND = "quant_not_found"
    UNSUPPORTED_ARCHITECTURE = "unsupported_architecture"
    UNSUPPORTED_OPTION = "unsupported_option"
    DOES_NOT_FIT = "does_not_fit"
    LOAD_FAILED = "load_failed"
    # 409 of /models/load and /models/unload.
    LOADED_WITH_OTHER_OPTIONS = "loaded_with_other_options"
    BUSY = "busy"
    # Of inference.
    MODEL_NOT_FOUND = "model_not_found"
    MODEL_NOT_LOADED = "model_not_loaded"
    MODEL_LOADING = "model_loading"
    INVALID_REQUEST = "invalid_request"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    TEMPLATE_RENDER_FAILED = "template_render_failed"
    SATURATED = "saturated"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    DEVICE_FAULT = "device_fault"
    REQUEST_FAILED = "request_failed"
    UNAUTHORIZED = "invalid_api_key"


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """`GET /version`."""

    version: str
    boot_id: str
    commit: str | None = None
    torch: str | None = None
    transformers: str | None = None
    cuda: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device as it was built: what does not change while the neuron runs."""

    index: int
    name: str
    kind: str  # "cuda" or "cpu"
    vram_total_mb: int
    compute_capability: str | None = None


@dataclass(frozen=True, slots=True)
class CachedModel:
    id: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Discovery:
    """`GET /discovery`: the host's hardware and what can run on it."""

    boot_id: str
    hostname: str
    os: str
    kernel: str
    devices: tuple[DeviceFacts, ...]
    harnesses: tuple[str, ...]
    driver: str | None = None
    cuda: str | None = None
    cuda_unavailable_reason: str | None = None
    cached_models: tuple[CachedModel, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """A device as its process last reported it. Reading it never waits for the device."""

    index: int
    vram_used_mb: int
    vram_free_mb: int
    poisoned: bool = False
    hung: bool = False
    restarting: bool = False
    given_up: bool = False
    """The neuron stopped replacing its process after repeated faults."""
    utilization_pct: int | None = None
    temp_c: int | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """What a loaded model is doing. Ratios are 0..1, rates are tokens per second."""

    id: str
    in_flight: int
    queue_depth: int
    max_in_flight: int
    max_queue_depth: int
    rejected: dict[str, int] = field(default_factory=dict)
    kv_used_ratio: float = 0.0
    prefix_hit_ratio: float = 0.0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of the fault ledger."""

    at: str  # RFC 3339, UTC
    device: int
    kind: str  # "poisoned", "died", "hung", "out_of_memory", "nan_logits"
    error: str
    models: tuple[str, ...] = ()
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """`GET /health`."""

    boot_id: str
    uptime_seconds: float
    devices: tuple[DeviceHealth, ...]
    models: tuple[ModelHealth, ...]
    lifecycle_cycles: int
    """Loads plus unloads since the neuron started."""
    activation: str = "active"  # "active" or "draining"
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is: `stage` is resolving, fetching, reading, preparing or warming."""

    stage: str
    percent: float  # 0..100 of the whole load
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class ModelLimit:
    """Limits in tokens: `context` holds prompt and output together."""

    context: int
    input: int
    output: int


@dataclass(frozen=True, slots=True)
class Servable:
    ok: bool
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Why a model is in phase `failed`; `hint` says what would work, where that is known."""

    code: str
    message: str
    hint: str | None = None
    needed_mb: int | None = None
    free_mb: int | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """An entry of `GET /models`."""

    id: str
    harness: str
    phase: ModelPhase
    devices: tuple[int, ...]
    progress: LoadProgress | None = None
    failure: LoadFailure | None = None
    vram_used_mb: int | None = None
    needed_mb: int | None = None
    """What it would ask for wherever it was loaded: `vram_used_mb` is more where memory is idle."""
    load_seconds: float | None = None
    quant: str | None = None
    dtype: str | None = None
    capabilities: tuple[str, ...] = ()
    limit: ModelLimit | None = None
    tool_call: bool = False
    reasoning: bool = False
    servable: Servable = Servable(ok=True)


@dataclass(frozen=True, slots=True)
class ModelList:
    """`GET /models`."""

    models: tuple[ModelInfo, ...]


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """`POST /models/load`. `source`: None (the hub, by `model_id`), a hub id or a local folder."""

    model_id: str
    source: str | None = None
    revision: str | None = None
    harness: str = "torch"
    quant: str | None = None
    dtype: str | None = None
    tensor_parallel: int = 1
    devices: tuple[int, ...] | None = None
    max_context: int | None = None
    wait: bool = False


@dataclass(frozen=True, slots=True)
class LoadAccepted:
    """Answer to a load: 202 while it goes on, 200 when the model is ready."""

    model_id: str
    phase: ModelPhase


@dataclass(frozen=True, slots=True)
class UnloadRequest:
    """`POST /models/unload`.

    The model takes no new request from here on; running ones may finish for `drain_seconds`.
    With `only_if_idle` the neuron refuses with 409 `busy` instead, and goes on serving, if
    anything is in flight or queued: an eviction asks so, and can therefore never cut a request.
    """

    model_id: str
    drain_seconds: float = 0.0
    only_if_idle: bool = False


@dataclass(frozen=True, slots=True)
class RestartRequest:
    """`POST /restart`: requests that still run after `drain_seconds` are ended."""

    drain_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class RestartAccepted:
    """Answer to a restart, 202: it is over when `GET /version` says another boot_id."""

    boot_id: str
    activation: str


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """The body of every error: `{"error": {...}}`, OpenAI's shape plus what Cortex can act on."""

    message: str
    type: str
    code: str
    param: str | None = None
    hint: str | None = None
    needed_mb: int | None = None
    free_mb: int | None = None


@dataclass(frozen=True, slots=True)
class ErrorBody:
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request; before its first token there are no completion tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request is while no token has come: `stage` is queued or prefill."""

    stage: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ControlFrame:
    """What follows `: cortex ` in a stream: progress on the way, usage before the text and after.

    The first usage comes once the prompt is read, before any text, reasoning or tool call: its
    completion tokens are 0, and there is no finish reason. The last frame has all of it, and the
    `stop_sequence` that ended choice 0 where one did. `ids` are the tokens behind the frame that
    follows, of choice 0 where `choice` is None.
    """

    progress: Progress | None = None
    usage: Usage | None = None
    timing: Timing | None = None
    finish_reason: str | None = None
    ids: tuple[int, ...] | None = None
    choice: int | None = None
    stop_sequence: str | None = None
