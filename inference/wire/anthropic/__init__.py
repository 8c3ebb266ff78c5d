"""Anthropic's dialect: messages, their tokens counted, the list of models. Pure: bytes and events.

It knows OpenAI's shapes, since a neuron is asked in them, and neither fleet nor HTTP.
"""

from inference.wire.anthropic.dialect import DIALECT
from inference.wire.anthropic.models import ModelEntry, model_body, model_list
from inference.wire.anthropic.request import (
    MESSAGES,
    CountRequest,
    encode_count,
    parse_count_request,
    parse_messages,
)

__all__ = [
    "DIALECT",
    "MESSAGES",
    "CountRequest",
    "ModelEntry",
    "encode_count",
    "model_body",
    "model_list",
    "parse_count_request",
    "parse_messages",
]
