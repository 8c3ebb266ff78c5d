"""The messages between the front process and a device process, and how they travel.

Commands go down, reports come up, over one stream socket per device: each message is four bytes
of little-endian length and a msgpack body with its type as a tag. Only ids, numbers and text
cross; a tensor has no encoding here. This module knows neither torch nor asyncio: `FrameSplitter`
is sans-IO, the reading and writing belong to the two ends.
"""

import struct
from collections.abc import Iterator

import msgspec

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of every message: gives each its type tag on the wire."""


# --- what a request asks for -------------------------------------------------------------------


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the next token is chosen. `temperature == 0` is greedy; the defaults change nothing.

    Presence and frequency penalties look at the generated tokens, as OpenAI has it; the repetition
    penalty looks at the prompt too, as transformers has it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}  # token id -> what is added to its logit
    seed: int | None = None


# --- commands: front -> device -----------------------------------------------------------------


class LoadModel(Message, frozen=True):
    """Load a local folder. Answered by ModelLoading, then ModelReady or LoadFailed."""

    model_id: str
    folder: str
    dtype: str | None = None  # None = the best for this device
    quant: str | None = None
    max_context: int | None = None
    max_in_flight: int = 32


class UnloadModel(Message, frozen=True):
    """Free all of a model and cancel its requests. Answered by ModelUnloaded."""

    model_id: str


class Submit(Message, frozen=True, omit_defaults=True):
    """Generate for one request. `request_id` is unique for the life of the device process."""

    request_id: str
    model_id: str
    prompt_ids: list[int]
    max_tokens: int
    stop_ids: list[int]  # empty = no token ends the text
    sampling: Sampling = Sampling()
    principal: str = ""
    min_tokens: int = 0  # no stop token may be chosen before so many tokens
    num_logprobs: int | None = None  # None = none; 0 = the chosen token's; k = the k best too
    grammar: str | None = None  # what the text must match, in llguidance's JSON form
    wants_embedding: bool = False  # compute the prompt, answer with its embedding, end with stop


class Cancel(Message, frozen=True):
    """Take a request out of queue and batch. Answered by its Output with finish `cancelled`."""

    request_id: str


class Shutdown(Message, frozen=True):
    """End the process."""


Command = LoadModel | UnloadModel | Submit | Cancel | Shutdown


# --- reports: device -> front ------------------------------------------------------------------


class Started(Message, frozen=True):
    """The device thread has bound its device. Versions are those of the libraries in use there."""

    memory_total_bytes: int
    torch_version: str
    transformers_version: str
    cuda_version: str | None = None


class ModelLoading(Message, frozen=True):
    """A load moved on: `stage` is reading, preparing or warming; `percent` is of the whole load."""

    model_id: str
    stage: str
    percent: float
    bytes_done: int = 0
    bytes_total: int = 0


class ModelReady(Message, frozen=True):
    """The canary token came out: the model serves."""

    model_id: str
    memory_bytes: int  # weights + reserved KV + workspace
    context_tokens: int
    kv_tokens: int  # how many tokens the KV cache holds over all requests
    dtype: str
    load_seconds: float
    slow_lane: bool = False  # transformers' own cache, one sequence at a time
    quant: str | None = None  # None = weights in `dtype`
    needed_bytes: int | None = None  # what it would ask for on another device


class LoadFailed(Message, frozen=True):
    model_id: str
    code: str  # protocol.ErrorCode
    message: str
    hint: str | None = None
    needed_bytes: int | None = None
    free_bytes: int | None = None


class ModelUnloaded(Message, frozen=True):
    model_id: str


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities, of the model's own distribution at temperature 1."""

    logprob: float  # of the chosen token
    top: list[tuple[int, float]] = []  # the best tokens, best first


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one step gave one request. `finish` is None while it runs; then one of
    stop, length, cancelled, device_fault, error. The tokens of a stopped request leave out the
    stop token. Numbers that are known only at an event are None elsewhere."""

    request_id: str
    token_ids: list[int]
    finish: str | None = None
    error_code: str | None = None  # with finish error or device_fault
    error: str | None = None
    prefill_done: int | None = None  # prompt tokens computed so far, while prefilling
    cached_tokens: int | None = None  # with the first token: prompt tokens taken from the cache
    queue_ms: float | None = None  # with the first token
    prefill_ms: float | None = None  # with the first token
    num_generated: int | None = None  # with the finish: tokens computed, the stop token included
    logprobs: list[TokenLogprob] | None = None  # one per token of `token_ids`, if asked for
    embedding: list[float] | None = None  # of unit length, with the finish, if asked for


class Outputs(Message, frozen=True):
    """All outputs of one step, in one message."""

    outputs: list[Output]


class ModelReport(msgspec.Struct, frozen=True):
    model_id: str
    running: int
    waiting: int
    kv_used_ratio: float = 0.0
    prefix_hit_ratio: float = 0.0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0
    preemptions: int = 0
    nan_logits: int = 0
    step_seconds_prefill: float = 0.0  # running means
    step_seconds_decode: float = 0.0


class Report(Message, frozen=True):
    """Sent about once a second from between two steps: its absence is what a watchdog sees."""

    memory_used_bytes: int
    memory_free_bytes: int
    models: list[ModelReport] = []


class Poisoned(Message, frozen=True):
    """The device can no longer be trusted. The process frees nothing and waits to be replaced."""

    error: str
    models: list[str] = []


class OutOfMemory(Message, frozen=True):
    """A ledger line: memory ran out, the device goes on."""

    error: str
    model_id: str


DeviceReport = (
    Started
    | ModelLoading
    | ModelReady
    | LoadFailed
    | ModelUnloaded
    | Outputs
    | Report
    | Poisoned
    | OutOfMemory
)


# --- encoding ----------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_report = msgspec.msgpack.Decoder(DeviceReport).decode


class ChannelError(Exception):
    """The bytes on the channel are not messages: the other end is not to be trusted any more."""


def encode(message: Message) -> bytes:
    """Return the message as a frame. Raises ChannelError if it is larger than one may be."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ChannelError(f"message of {len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


class FrameSplitter:
    """Cuts a byte stream into message bodies, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each body completed by `data`. Raises ChannelError on an impossible length."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._buffer, start)
                if length > MAX_MESSAGE_BYTES:
                    raise ChannelError(f"frame of {length} bytes announced")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    return
                body = bytes(self._buffer[start + _LENGTH.size : end])
                start = end
                yield body
        finally:
            del self._buffer[:start]
