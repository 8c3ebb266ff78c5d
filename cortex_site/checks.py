"""System checks: combinations of settings that would start and then disappoint.

Each has an id and a hint. A single bad value never gets here: `env` refuses it.
"""

import ipaddress
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

OPEN_TO_THE_NETWORK = (
    "{host} is reachable from the network, and Cortex does not identify its callers."
)
OPEN_HINT = (
    "Listen on 127.0.0.1, or set CORTEX_ALLOW_ANONYMOUS=true if everyone who can reach this "
    "address may use it."
)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@register(Tags.security)
def check_not_open(**_: Any) -> list[CheckMessage]:
    """cortex.E001: the gateway would serve strangers."""
    if is_loopback(settings.CORTEX_HOST) or settings.CORTEX_ALLOW_ANONYMOUS:
        return []
    message = OPEN_TO_THE_NETWORK.format(host=f"CORTEX_HOST={settings.CORTEX_HOST}")
    return [Error(message, hint=OPEN_HINT, id="cortex.E001")]


@register()
def check_ports_differ(**_: Any) -> list[CheckMessage]:
    """cortex.E002: two of our own processes would fight for one port."""
    ports = (settings.CORTEX_PORT, settings.CORTEX_METRICS_PORT, settings.NEURON_PORT)
    if len(set(ports)) == len(ports):
        return []
    return [
        Error(
            f"The gateway, metrics and neuron ports are {ports}: two are the same.",
            hint="Set CORTEX_PORT, CORTEX_METRICS_PORT and NEURON_PORT to different numbers.",
            id="cortex.E002",
        )
    ]


@register()
def check_hosts_named(**_: Any) -> list[CheckMessage]:
    """cortex.E003: the admin would answer nobody."""
    if settings.ALLOWED_HOSTS or settings.CORTEX_SERVE_ROLE == "gateway":
        return []
    return [
        Error(
            "CORTEX_ALLOWED_HOSTS is empty, so the admin would refuse every request.",
            hint="Set it to the names clients use, separated by commas, or to * .",
            id="cortex.E003",
        )
    ]
