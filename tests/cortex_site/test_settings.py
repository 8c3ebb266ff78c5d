"""What the settings make of a log line."""

import logging
import sys

import structlog
from django.conf import settings


def test_a_logged_error_shows_no_values() -> None:
    arguments = dict(settings.LOGGING["formatters"]["cortex"])
    assert arguments.pop("()") is structlog.stdlib.ProcessorFormatter
    formatter = structlog.stdlib.ProcessorFormatter(**arguments)
    try:
        secret = "ctx_prefix_" + "secret"
        raise ValueError(len(secret))
    except ValueError:
        record = logging.LogRecord("fleet", 40, __file__, 1, "it failed", (), sys.exc_info())
    line = formatter.format(record)
    assert "ValueError: 17" in line
    assert "ctx_prefix_secret" not in line
