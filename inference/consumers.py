"""The HTTP consumer of the inference API: which path is whose, and nothing else.

A Channels consumer whose `__call__` is our own: the stock one would not see a client leave, shares
one thread with all others and listens to Redis. No Django middleware runs here.
"""

import logging
import re

from channels.generic.http import AsyncHttpConsumer

from inference import gateway
from inference.client import Client, ClientLeft, Receive, Scope, Send
from inference.gateway import Gateway
from inference.wire import anthropic, openai, responses
from inference.wire.dialect import Dialect, Operation
from inference.wire.errors import CortexError, InternalError, MethodNotAllowed, PathNotFound

log = logging.getLogger(__name__)

OPERATIONS = {
    operation.path: operation
    for operation in (
        openai.CHAT,
        openai.COMPLETIONS,
        openai.EMBEDDINGS,
        responses.RESPONSES,
        anthropic.MESSAGES,
    )
}
_COUNT_TOKENS = f"{anthropic.MESSAGES.path}/count_tokens"
_MODELS = "/v1/models"
_REQUESTS = "/v1/requests"
_SLASHES = re.compile("//+")
_HEALTH = frozenset({"", "/health"})


class GatewayConsumer(AsyncHttpConsumer):  # type: ignore[misc]
    """Serves `/v1/...` and `/health`."""

    channel_layer_alias = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A slash too many, where a base URL ends with one, makes no difference and is no redirect.
        path = _SLASHES.sub("/", scope["path"]).rstrip("/")
        operation = OPERATIONS.get(path)
        dialect = _dialect_of(path, scope) if operation is None else operation.dialect
        client = Client(scope, receive, send, dialect)
        # A server without lifespan events starts the gateway with its first request.
        running = gateway.current() or await gateway.startup()
        try:
            if operation is None:
                await _route(running, client, path, dialect)
            else:
                await _serve(running, client, operation)
        except CortexError as error:
            await client.fail(error)
        except ClientLeft:
            pass  # nobody is there to be told
        except Exception:  # a bug of ours: the client learns the request id, the log the rest
            log.exception("request %s failed", client.request_id)
            await client.fail(InternalError(client.request_id))


async def _serve(running: Gateway, client: Client, operation: Operation) -> None:
    """Raises MethodNotAllowed."""
    _allow(client, "POST")
    await running.serve(client, operation)


async def _route(running: Gateway, client: Client, path: str, dialect: Dialect) -> None:
    """Raises CortexError."""
    if path == _COUNT_TOKENS:
        _allow(client, "POST")
        await running.count_tokens(client)
    elif path in _HEALTH:
        _allow(client, "GET", "HEAD")
        await running.show_health(client)
    elif path == _MODELS:
        _allow(client, "GET", "HEAD")
        await running.list_models(client, dialect)
    elif path.startswith(f"{_MODELS}/"):
        _allow(client, "GET", "HEAD")
        await running.show_model(client, path.removeprefix(f"{_MODELS}/"), dialect)
    elif path.startswith(f"{_REQUESTS}/"):
        _allow(client, "DELETE")
        await running.cancel(client, path.removeprefix(f"{_REQUESTS}/"))
    else:
        raise PathNotFound(f"There is no {client.path[:200]} here.")


def _dialect_of(path: str, scope: Scope) -> Dialect:
    """Return the dialect of a path that both families of clients know, or neither."""
    if path == _COUNT_TOKENS or any(name == b"anthropic-version" for name, _ in scope["headers"]):
        return anthropic.DIALECT
    return openai.DIALECT


def _allow(client: Client, *methods: str) -> None:
    """Raises MethodNotAllowed."""
    if client.method not in methods:
        raise MethodNotAllowed(client.method, ", ".join(methods))
