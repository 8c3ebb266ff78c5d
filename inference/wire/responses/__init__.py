"""OpenAI's Responses: items in, items and events out; in between it is a chat.

    request       what is asked; uses input_items conversation (items as messages), tools
    answer        the response, event by event or at once; uses items failure
    carried       reasoning as clients carry it from one request to the next
    freeform      calls of tools that take any text, which a model makes as functions

Sans-IO. It knows no HTTP, no models and no neurons.
"""

from inference.wire.responses.request import RESPONSES

__all__ = ["RESPONSES"]
