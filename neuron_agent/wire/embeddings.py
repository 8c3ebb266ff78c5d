"""OpenAI's embeddings: bytes in, EmbeddingRequest out; vectors in, the answer's bytes out.

It knows no tokenizer, and of a model's vectors only that they are of unit length.
"""

import base64
import math
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from neuron_agent.errors import BadRequest
from neuron_agent.wire.completion_request import Prompt, parse_prompts
from neuron_agent.wire.json_body import Body, check_range, decode, parse_object

MAX_INPUTS = 2048
MAX_DIMENSIONS = 2**20


class EmbeddingBody(Body, frozen=True):
    model: str
    input: str | list[Any]
    encoding_format: str | None = None
    dimensions: int | None = None


class EmbeddingRequest(msgspec.Struct, frozen=True):
    """A request that makes sense."""

    model: str
    inputs: tuple[Prompt, ...]
    is_base64: bool = False
    dimensions: int | None = None


def parse_embedding_request(data: bytes) -> EmbeddingRequest:
    """Return the request in a body. Raises BadRequest."""
    body = decode(parse_object(data), EmbeddingBody)
    if body.encoding_format not in (None, "float", "base64"):
        raise BadRequest("encoding_format must be float or base64", param="encoding_format")
    check_range("dimensions", body.dimensions, 1, MAX_DIMENSIONS)
    inputs = parse_prompts(body.input, "input")
    if len(inputs) > MAX_INPUTS:
        raise BadRequest(f"input takes at most {MAX_INPUTS} at once", param="input")
    if "" in inputs:
        raise BadRequest("input has an empty text", param="input")
    is_base64 = body.encoding_format == "base64"
    return EmbeddingRequest(body.model, inputs, is_base64, body.dimensions)


def shorten(vector: Sequence[float], dimensions: int | None) -> list[float]:
    """Return the first dimensions, of unit length again. Raises BadRequest if there are fewer."""
    if dimensions is None or dimensions == len(vector):
        return list(vector)
    if dimensions > len(vector):
        raise BadRequest(f"this model has {len(vector)} dimensions", param="dimensions")
    kept = vector[:dimensions]
    length = math.sqrt(math.fsum(value * value for value in kept))
    return [value / length for value in kept] if length > 0 else list(kept)


def encode_embeddings(
    request: EmbeddingRequest, vectors: Sequence[Sequence[float]], num_tokens: int
) -> bytes:
    """Return the body of the answer, vectors in the order of the inputs. Raises BadRequest."""
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(vector, request)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    answer = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return msgspec.json.encode(answer)


def _shown(vector: Sequence[float], request: EmbeddingRequest) -> list[float] | str:
    values = shorten(vector, request.dimensions)
    if not request.is_base64:
        return values
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
