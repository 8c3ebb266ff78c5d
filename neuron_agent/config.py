"""The neuron's configuration, read once from neuron.toml and NEURON_* variables.

Bad configuration raises ConfigError before anything starts: unknown keys with the nearest known
one, wrong types and values with the file and line where they stand. It opens no port and looks
at no device.

A variable overrides the file. Two underscores go down one level: NEURON_DEVICES__CPU=1 is
`[devices] cpu = 1`. Lists are comma-separated, or JSON where that is not enough; registries are
a JSON object.
"""

import difflib
import ipaddress
import json
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from neuron_agent.protocol import DEFAULT_PORT, LoadRequest

ENVIRONMENT_PREFIX = "NEURON_"

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class ConfigError(Exception):
    """The neuron must not start with this configuration; the message says what and where."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the configuration's tables."""


class DevicesConfig(Section, frozen=True):
    """Which devices this neuron uses. GPUs are found by themselves; CPU devices are declared."""

    cpu: NotNegative = 0
    """CPU devices to offer; with 0 there is one all the same where the host has no GPU."""
    cpu_memory_mb: Positive | None = None
    """Memory budget of each CPU device; None shares half of the host's memory among them."""
    threads: Positive | None = None
    """Compute threads of each CPU device; None shares the host's cores among them."""
    cuda: bool = True
    """Whether GPUs are used at all."""


class WatchdogConfig(Section, frozen=True):
    """When a device process counts as hung, and how often it is replaced before giving up."""

    start_seconds: Seconds = 180.0
    step_seconds: Seconds = 60.0
    load_seconds: Seconds = 900.0
    max_faults: Positive = 5
    fault_window_seconds: Seconds = 600.0
    backoff_seconds: Seconds = 0.5
    max_backoff_seconds: Seconds = 30.0
    stop_seconds: Seconds = 2.0


class RegistryConfig(Section, frozen=True):
    """A registry beside the hub, under the name by which sources call it: `NAME:owner/model`."""

    url: str
    token: str | None = None
    cache: str | None = None
    """Where its models are kept; None = a folder of its own within the hub's cache."""


class NeuronConfig(Section, frozen=True):
    """Everything a neuron can be told. The README's table of settings is checked against this."""

    host: str = "127.0.0.1"
    port: Port = DEFAULT_PORT
    token: str | None = None
    """Bearer token asked of callers that are not on this host."""
    hf_cache: str | None = None
    """Where models from the hub are kept; None = HF_HUB_CACHE, HF_HOME, the library's default."""
    registries: dict[str, RegistryConfig] = {}
    """Registries by name, each a table `[registries.NAME]` in the file."""
    default_models: tuple[str | LoadRequest, ...] = ()
    """Loaded in the background once the port is open."""
    max_in_flight: Positive = 32
    max_queue_depth: NotNegative = 256
    max_wait_seconds: Seconds = 120.0
    max_per_principal: Positive | None = None
    """Requests of one account at a model at once, running or waiting; None = no limit."""
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    device_command: tuple[str, ...] = (sys.executable, "-m", "neuron_agent.devices.process")
    """What starts a device process; the neuron adds --fd, --device and the budget."""
    devices: DevicesConfig = DevicesConfig()
    watchdog: WatchdogConfig = WatchdogConfig()


def load_config(path: Path | None, environment: Mapping[str, str]) -> NeuronConfig:
    """Return the configuration of a file (if any) and the environment. Raises ConfigError."""
    text = _read(path) if path else ""
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    _refuse_unknown(values, NeuronConfig, where=lambda key: _place(path, text, key))
    overrides = _from_environment(environment)
    config = _convert(_merge(values, overrides), path, text)
    check_bind(config.host, config.token)
    return config


def check_bind(host: str, token: str | None) -> None:
    """Raise ConfigError if the port would be open to the network without a token."""
    if token is not None and not token.strip():
        raise ConfigError("token is empty: leave it out, or set one")
    if not token and not is_loopback(host):
        raise ConfigError(
            f"host = {host!r} is reachable from the network: set a token (NEURON_TOKEN) first"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is this host's own; a name other than localhost counts as foreign."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _convert(values: dict[str, Any], path: Path | None, text: str) -> NeuronConfig:
    try:
        return msgspec.convert(values, NeuronConfig, strict=False)
    except msgspec.ValidationError as error:
        key = _key_of(str(error))
        raise ConfigError(
            f"{_place(path, text, key)}: {key or 'configuration'}: {error}"
        ) from error


def _key_of(message: str) -> str:
    """Return the key a validation message speaks of: `... - at `$.devices.cpu`` -> `cpu`."""
    match = re.search(r"\$\.([\w.]+)", message)
    return match.group(1).rsplit(".", 1)[-1] if match else ""


def _place(path: Path | None, text: str, key: str) -> str:
    """Return where a key was set: file and line, or the environment."""
    for number, line in enumerate(text.splitlines(), start=1):
        if key and re.match(rf"\s*(\[\s*)?\"?{re.escape(key)}\b", line):
            return f"{path}:{number}"
    return str(path) if path and key in text else "environment"


def _fields(section: type[Section]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(section)}


def _refuse_unknown(values: dict[str, Any], section: type[Section], where: Any) -> None:
    fields = _fields(section)
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{where(key)}: unknown key {key!r}{_nearest(key, list(fields))}")
        if _is_section(fields[key]) and isinstance(value, dict):
            _refuse_unknown(value, fields[key], where)


def _nearest(key: str, known: list[str]) -> str:
    found = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _is_section(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, Section)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the NEURON_* variables as the nested tables they stand for."""
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        *tables, key = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        section = _section_of(name, tables)
        fields = _fields(section)
        if key not in fields or _is_section(fields[key]):
            raise ConfigError(f"{name}: unknown setting{_nearest(key, list(fields))}")
        inner = values
        for table in tables:
            inner = inner.setdefault(table, {})
        inner[key] = _parse_value(name, text, str(fields[key]))
    return values


def _section_of(name: str, tables: list[str]) -> type[Section]:
    section: type[Section] = NeuronConfig
    for table in tables:
        inner: Any = _fields(section).get(table)
        if not _is_section(inner):
            raise ConfigError(f"{name}: unknown table {table!r}{_nearest(table, ['devices'])}")
        section = inner
    return section


def _parse_value(name: str, text: str, kind: str) -> Any:
    """Return a variable's value: what is neither a list nor a table is converted later."""
    if "dict" in kind:
        return _parse_json(name, text)
    if "tuple" not in kind:
        return text
    if not text.lstrip().startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]
    return _parse_json(name, text)


def _parse_json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name}: not JSON: {error}") from error


def _merge(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in overrides.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged
