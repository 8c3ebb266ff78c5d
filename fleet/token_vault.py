"""Neuron tokens at rest: encrypted with a key derived from the site's secret key.

It stores nothing and knows no rows. A token that cannot be read (the secret key was changed) is
None: its neuron then answers 401, which the operator sees beside the neuron.
"""

import base64
import hashlib
import logging
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings

log = logging.getLogger(__name__)

_PURPOSE = b"cortex neuron token v1:"


def encrypt_token(token: str | None) -> bytes | None:
    return _fernet(settings.SECRET_KEY).encrypt(token.encode()) if token else None


def decrypt_token(encrypted: bytes | memoryview | None) -> str | None:
    return _decrypt(bytes(encrypted), settings.SECRET_KEY) if encrypted else None


@lru_cache(maxsize=1)
def _fernet(secret_key: str) -> Fernet:
    digest = hashlib.sha256(_PURPOSE + secret_key.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))


@lru_cache(maxsize=256)
def _decrypt(encrypted: bytes, secret_key: str) -> str | None:
    try:
        return _fernet(secret_key).decrypt(encrypted).decode()
    except InvalidToken:
        log.error(
            "A neuron's token cannot be decrypted: was CORTEX_SECRET_KEY changed? Set it anew."
        )
        return None
