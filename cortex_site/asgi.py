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
    """Send a request to the gateway or to Django, by its path alone."""
    path = scope["path"]
    of_gateway = path.startswith("/v1/") or path in ("/v1", "/health", "/health/")
    # A process that is the gateway alone answers every path in the gateway's words.
    if (of_gateway and _SERVES_GATEWAY) or not _SERVES_ADMIN:
        await _gateway_application(scope, receive, send)
    else:
        await django_application(scope, receive, send)


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
