"""Reads the environment: each function parses one variable or raises ImproperlyConfigured.

It knows types, not settings. Only `settings` calls it, once, when the process starts.
"""

import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def env_str(name: str, default: str) -> str:
    return os.environ.get(name, "").strip() or default


def env_bool(name: str, default: bool) -> bool:
    text = env_str(name, "").lower()
    if not text:
        return default
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ImproperlyConfigured(f"{name}={text!r} is neither true nor false.")


def env_int(name: str, default: int, *, minimum: int, maximum: int) -> int:
    return round(env_float(name, default, minimum=minimum, maximum=maximum, whole=True))


def env_float(
    name: str, default: float, *, minimum: float, maximum: float, whole: bool = False
) -> float:
    text = env_str(name, "")
    if not text:
        return default
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={text!r} is not a number.") from None
    if not minimum <= value <= maximum:
        raise ImproperlyConfigured(f"{name}={text} is not between {minimum} and {maximum}.")
    return value


def env_choice(name: str, default: str, allowed: frozenset[str]) -> str:
    text = env_str(name, default)
    if text not in allowed:
        raise ImproperlyConfigured(f"{name}={text!r} is none of {', '.join(sorted(allowed))}.")
    return text


def env_list(name: str, default: list[str]) -> list[str]:
    text = env_str(name, "")
    return [part.strip() for part in text.split(",") if part.strip()] if text else default


def env_url(name: str, schemes: frozenset[str]) -> str | None:
    text = env_str(name, "")
    if not text:
        return None
    scheme, separator, rest = text.partition("://")
    if not separator or not rest or scheme not in schemes:
        wanted = ", ".join(f"{scheme}://" for scheme in sorted(schemes))
        raise ImproperlyConfigured(f"{name} is not a URL that starts with one of {wanted}.")
    return text


def env_secret(name: str, stored_in: Path) -> str:
    """The secret in the variable, else the one in the file, which is made on first use."""
    text = env_str(name, "")
    if text:
        if len(text) < 32:
            raise ImproperlyConfigured(f"{name} is shorter than 32 characters.")
        return text
    try:
        return _read_or_make(stored_in)
    except OSError as error:
        raise ImproperlyConfigured(
            f"The secret key in {stored_in.name} of the data folder cannot be read or written "
            f"({error.strerror}). Set {name}, or CORTEX_DATA to a folder of yours."
        ) from None


def make_folder(path: Path) -> None:
    """Make a folder that must be there. Raises ImproperlyConfigured."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImproperlyConfigured(
            f"The folder {path} cannot be made ({error.strerror}). "
            "Set CORTEX_DATA to a folder of yours."
        ) from None


def _read_or_make(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may start at once: only one creates the file, whole, and all read it.
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
