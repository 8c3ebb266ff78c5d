"""The outermost layer of the front's HTTP: who may come in, and what leaves when things go wrong.

Callers on this host come in freely, others show the token. Whatever a route raises leaves as an
OpenAI-shaped error: no HTML, no traceback, ever. It knows no route.
"""

import hmac
import re
import uuid

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuron_agent.config import is_loopback
from neuron_agent.errors import (
    MethodNotAllowed,
    NeuronError,
    NotFound,
    RequestFailed,
    Unauthorized,
)
from neuron_agent.http_answer import error_answer
from neuron_agent.protocol import REQUEST_ID_HEADER, ErrorCode

log = structlog.get_logger()

_SANE_REQUEST_ID = re.compile(r"[\w.:/-]{1,128}")


class Boundary:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["app"] = self._app  # makes the router raise what it would answer in plain text
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                own = (REQUEST_ID_HEADER.encode(), request_id.encode())
                message = {**message, "headers": [*message.get("headers", []), own]}
            await send(message)

        try:
            if not is_allowed(_peer(scope), _header(scope, b"authorization"), self._token):
                raise Unauthorized("the bearer token is missing", code=ErrorCode.UNAUTHORIZED)
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return  # it left before it had said all; there is nobody to answer
        except Exception as error:  # the top of a request: it fails, the neuron goes on
            answer = error_answer(_as_neuron_error(error, request_id))
            if has_started:
                raise  # too late for an answer; the server closes the connection
            await answer(scope, receive, send_with_id)


def is_allowed(peer: str | None, authorization: str, token: str | None) -> bool:
    """Whether a caller may come in. Without a token the port is bound to loopback alone."""
    if token is None or (peer is not None and is_loopback(peer)):
        return True
    scheme, _, shown = authorization.partition(" ")
    is_equal = hmac.compare_digest(shown.strip().encode(), token.encode())
    return is_equal and scheme.lower() == "bearer"


def _as_neuron_error(error: Exception, request_id: str) -> NeuronError:
    if isinstance(error, NeuronError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 405:
        return MethodNotAllowed("this path takes another method", code="method_not_allowed")
    if isinstance(error, HTTPException):
        return NotFound("there is no such path", code="not_found")
    log.exception("request failed", request=request_id, exc_info=error)
    return RequestFailed(f"internal error, request {request_id}", code="internal_error")


def _peer(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None


def _header(scope: Scope, name: bytes) -> str:
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if values else ""


def _request_id(scope: Scope) -> str:
    """Return the caller's request id if it is sane, else a new one."""
    given = _header(scope, REQUEST_ID_HEADER.encode())
    return given if _SANE_REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
