"""Django's settings and Cortex's own, read once from the environment.

Nothing is decided here that an operator may want otherwise: every value that matters has a
variable, and the README's table lists them all. Embedded defaults (SQLite, a Valkey on a socket in
the data folder) stand in wherever production would name a server.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import dj_database_url
import structlog
from django.urls import reverse_lazy

from cortex_site.env import (
    env_bool,
    env_choice,
    env_float,
    env_int,
    env_list,
    env_secret,
    env_str,
    env_url,
    make_folder,
)
from cortex_site.process_metrics import name_files_by_host_and_process

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env_str("CORTEX_DATA", str(BASE_DIR / "data"))).expanduser().resolve()
_DAY = 86_400.0

# --- where things listen -----------------------------------------------------------------------

CORTEX_HOST = env_str("CORTEX_HOST", "127.0.0.1")
CORTEX_PORT = env_int("CORTEX_PORT", 31313, minimum=1, maximum=65535)
CORTEX_METRICS_HOST = env_str("CORTEX_METRICS_HOST", CORTEX_HOST)
CORTEX_METRICS_PORT = env_int("CORTEX_METRICS_PORT", 31314, minimum=1, maximum=65535)
CORTEX_ALLOW_ANONYMOUS = env_bool("CORTEX_ALLOW_ANONYMOUS", False)
NEURON_PORT = env_int("NEURON_PORT", 13131, minimum=1, maximum=65535)

CORTEX_SERVE_ROLE = env_choice("CORTEX_SERVE_ROLE", "all", frozenset({"all", "gateway", "admin"}))

# --- what the control plane decides ------------------------------------------------------------

CORTEX_POLL_SECONDS = env_int("CORTEX_POLL_SECONDS", 2, minimum=1, maximum=60)
CORTEX_NEURON_LOST_SECONDS = env_float("CORTEX_NEURON_LOST_SECONDS", 60, minimum=1, maximum=_DAY)
CORTEX_EVICTION_STRATEGY = env_choice(
    "CORTEX_EVICTION_STRATEGY", "lru", frozenset({"lru", "priority", "cost"})
)
CORTEX_MIN_RESIDENCY_SECONDS = env_float(
    "CORTEX_MIN_RESIDENCY_SECONDS", 10, minimum=0, maximum=_DAY
)
CORTEX_MAX_WAIT_SECONDS = env_float("CORTEX_MAX_WAIT_SECONDS", 60, minimum=0, maximum=_DAY)
CORTEX_LOAD_WAIT_SECONDS = env_float("CORTEX_LOAD_WAIT_SECONDS", 300, minimum=1, maximum=_DAY)
CORTEX_LOAD_STALL_SECONDS = env_float("CORTEX_LOAD_STALL_SECONDS", 300, minimum=1, maximum=_DAY)
CORTEX_KEEP_RECORDS_DAYS = env_float("CORTEX_KEEP_RECORDS_DAYS", 90, minimum=1, maximum=36_500)
CORTEX_KEEP_EVENTS_DAYS = env_float("CORTEX_KEEP_EVENTS_DAYS", 30, minimum=1, maximum=36_500)

# --- metrics: every process writes here, `manage.py metrics` reads -----------------------------

METRICS_DIR = Path(env_str("PROMETHEUS_MULTIPROC_DIR", str(DATA_DIR / "metrics")))
make_folder(METRICS_DIR)
# prometheus_client looks at the environment when it is first imported, which is after this.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(METRICS_DIR)
name_files_by_host_and_process()

# --- state -------------------------------------------------------------------------------------

SECRET_KEY = env_secret("CORTEX_SECRET_KEY", DATA_DIR / "secret-key")
DATABASE_URL = env_url("CORTEX_DATABASE_URL", frozenset({"postgres", "postgresql", "sqlite"}))
_SQLITE: dict[str, Any] = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": DATA_DIR / "cortex.sqlite3",
    "OPTIONS": {
        # IMMEDIATE takes the write lock when a transaction begins: without it a read that turns
        # into a write fails at once when another process writes, whatever the timeout.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    },
}


def _database() -> dict[str, Any]:
    if DATABASE_URL is None:
        return _SQLITE
    parsed: dict[str, Any] = dict(
        dj_database_url.parse(DATABASE_URL, conn_max_age=0, conn_health_checks=True)
    )
    if parsed["ENGINE"] == "django.db.backends.sqlite3":
        return {**_SQLITE, "NAME": parsed["NAME"]}
    parsed["OPTIONS"] = {**parsed.get("OPTIONS", {}), "pool": {"min_size": 0, "max_size": 8}}
    return parsed


DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def _embedded_socket() -> Path:
    """A socket's path may have 107 bytes: a deep data folder gets one in the temporary folder."""
    path = DATA_DIR / "valkey.sock"
    if len(str(path).encode()) < 100:
        return path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cortex-{name}.sock"


EMBEDDED_VALKEY_SOCKET = _embedded_socket()
REDIS_URL_GIVEN = env_url("CORTEX_REDIS_URL", frozenset({"redis", "rediss", "unix"}))
REDIS_URL = REDIS_URL_GIVEN or f"unix://{EMBEDDED_VALKEY_SOCKET}"

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }
}

# --- Celery ------------------------------------------------------------------------------------

CELERY_BROKER_URL = REDIS_URL.replace("unix://", "redis+socket://", 1)
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # Longer than any task may run, or a running task would be delivered a second time.
    "visibility_timeout": 60,
    "socket_timeout": 30,
    "socket_keepalive": not REDIS_URL.startswith("unix://"),
    "health_check_interval": 25,
}
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_POOL = "threads"
CELERY_WORKER_CONCURRENCY = 4
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
DJANGO_CELERY_BEAT_TZ_AWARE = True

# --- Django ------------------------------------------------------------------------------------

DEBUG = env_bool("CORTEX_DEBUG", False)
ALLOWED_HOSTS = env_list("CORTEX_ALLOWED_HOSTS", ["*"] if CORTEX_HOST == "127.0.0.1" else [])
CSRF_TRUSTED_ORIGINS = env_list("CORTEX_TRUSTED_ORIGINS", [])
USE_TZ = True
TIME_ZONE = env_str("CORTEX_TIME_ZONE", "UTC")
LANGUAGE_CODE = "en-us"
ROOT_URLCONF = "cortex_site.urls"
ASGI_APPLICATION = "cortex_site.asgi.application"
STATIC_URL = "/static/"
STATIC_ROOT = DATA_DIR / "static"
make_folder(STATIC_ROOT)
WHITENOISE_USE_FINDERS = True

INSTALLED_APPS = [
    "daphne",
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "channels",
    "django_celery_beat",
    "django_prometheus",
    "cortex_site",
    "fleet",
    "inference",
]
MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in ("MinimumLengthValidator", "CommonPasswordValidator", "NumericPasswordValidator")
]
LOGIN_REDIRECT_URL = "/admin/"


def _page(title: str, icon: str, name: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}_changelist")}


UNFOLD = {
    "SITE_TITLE": "Cortex",
    "SITE_HEADER": "Cortex",
    "SITE_SUBHEADER": "One address for your models",
    "SITE_SYMBOL": "hub",
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "SIDEBAR": {
        "show_search": False,
        "navigation": [
            {
                "title": "Fleet",
                "items": [
                    _page("Neurons", "dns", "fleet_neuron"),
                    _page("Models", "deployed_code", "fleet_modelprofile"),
                    _page("Aliases", "alternate_email", "fleet_alias"),
                    _page("Placements", "memory", "fleet_placement"),
                    _page("Waiting", "hourglass_top", "fleet_demand"),
                    _page("Events", "history", "fleet_fleetevent"),
                ],
            },
            {
                "title": "Inference",
                "items": [_page("Requests", "swap_horiz", "inference_requestrecord")],
            },
            {
                "title": "Site",
                "separator": True,
                "items": [
                    _page("Operators", "person", "auth_user"),
                    _page("Periodic tasks", "schedule", "django_celery_beat_periodictask"),
                ],
            },
        ],
    },
}

# --- logs --------------------------------------------------------------------------------------

LOG_LEVEL = env_choice("CORTEX_LOG_LEVEL", "INFO", frozenset({"DEBUG", "INFO", "WARNING", "ERROR"}))
LOG_JSON = env_choice("CORTEX_LOG_FORMAT", "console", frozenset({"console", "json"})) == "json"


def _shared_processors() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
    ]


structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_shared_processors(),
        structlog.processors.format_exc_info,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)
_RENDERER = (
    structlog.processors.JSONRenderer()
    if LOG_JSON
    else structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        # The default shows the values of all variables, keys and prompts among them, and takes a
        # second of the event loop for it.
        exception_formatter=structlog.dev.plain_traceback,
    )
)
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "cortex": {
            "()": structlog.stdlib.ProcessorFormatter,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _RENDERER,
            ],
            "foreign_pre_chain": _shared_processors(),
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "cortex"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {
        # Every 404 of a browser that asks for an icon would be a warning.
        "django.request": {"level": "ERROR"},
        **{
            name: {"handlers": ["stderr"], "level": LOG_LEVEL, "propagate": False}
            for name in ("cortex_site", "fleet", "inference")
        },
    },
}
