"""The HTTP consumer of the inference API: which path is whose, and nothing else.

A Channels consumer whose `__call__` is our own: the stock one would not see a client leave, shares
one thread with all others and listens to Redis. No Django middleware runs here.
"""

import logging

from channels.generic.http import AsyncHttpConsumer

from inference import gateway
from inference.client import Client, Receive, Scope, Send
from inference.gateway import Gateway
from inference.wire import openai_chat
from inference.wire.errors import CortexError, InternalError, MethodNotAllowed, PathNotFound

log = logging.getLogger(__name__)

_MODELS = "/v1/models"
_HEALTH = frozenset({"", "/health"})


class GatewayConsumer(AsyncHttpConsumer):  # type: ignore[misc]
    """Serves `/v1/...` and `/health`."""

    channel_layer_alias = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(scope, receive, send)
        # A server without lifespan events starts the gateway with its first request.
        running = gateway.current() or await gateway.startup()
        if client.path == openai_chat.PATH and client.method == "POST":
            await running.serve(client)
            return
        try:
            await _route(running, client)
        except CortexError as error:
            await client.fail(error)
        except Exception:  # a bug of ours: the client learns the request id, the log the rest
            log.exception("request %s failed", client.request_id)
            await client.fail(InternalError(client.request_id))


async def _route(running: Gateway, client: Client) -> None:
    """A trailing slash makes no difference, and is no redirect. Raises CortexError."""
    path = client.path.rstrip("/")
    if path == openai_chat.PATH:
        _allow(client, "POST")
        await running.serve(client)
    elif path in _HEALTH:
        _allow(client, "GET", "HEAD")
        await running.show_health(client)
    elif path == _MODELS:
        _allow(client, "GET", "HEAD")
        await running.list_models(client)
    elif path.startswith(f"{_MODELS}/"):
        _allow(client, "GET", "HEAD")
        await running.show_model(client, path.removeprefix(f"{_MODELS}/"))
    else:
        raise PathNotFound(f"There is no {client.path[:200]} here.")


def _allow(client: Client, *methods: str) -> None:
    if client.method not in methods:
        raise MethodNotAllowed(client.method, ", ".join(methods))
