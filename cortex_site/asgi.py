"""Who answers what: /v1 and /health go to the gateway, everything else over HTTP to Django.

`CORTEX_SERVE_ROLE` says which of the two a process is: `gateway`, `admin`, or `all` for both.
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cortex_site.settings")

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()

from channels.routing import ProtocolTypeRouter
from django.conf import settings

from inference import gateway
from inference.consumers import GatewayConsumer

Scope = Any
Receive = Any
Send = Any

_SERVES_GATEWAY = settings.CORTEX_SERVE_ROLE in ("all", "gateway")
_SERVES_ADMIN = settings.CORTEX_SERVE_ROLE in ("all", "admin")
_gateway_application = GatewayConsumer.as_asgi()


async def http(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a request to the gateway or to Django."""
    # A process that is the gateway alone answers every path in the gateway's words.
    if (_SERVES_GATEWAY and _is_for_gateway(scope)) or not _SERVES_ADMIN:
        await _gateway_application(scope, receive, send)
    else:
        await django_application(scope, receive, send)


def _is_for_gateway(scope: Scope) -> bool:
    path = "/" + scope["path"].lstrip("/")
    if path == "/":  # people are shown the admin, programs how the fleet is
        return not any(
            name == b"accept" and b"text/html" in value for name, value in scope["headers"]
        )
    return path.startswith("/v1/") or path in ("/v1", "/health", "/health/")


async def websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """No websocket is served: refuse the handshake."""
    await receive()
    await send({"type": "websocket.close", "code": 1000})


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Start and stop what the gateway runs beside its requests."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            if _SERVES_GATEWAY:
                await gateway.startup()
            await send({"type": "lifespan.startup.complete"})
        else:
            if _SERVES_GATEWAY:
                await gateway.shutdown()
            await send({"type": "lifespan.shutdown.complete"})
            return


application = ProtocolTypeRouter({"http": http, "websocket": websocket, "lifespan": lifespan})
