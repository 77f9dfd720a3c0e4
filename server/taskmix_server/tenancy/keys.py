"""API keys: how they are made, written, hashed and checked.

A key is `tmx_<id>_<secret>`: a prefix that secret scanners can look for, a public id to look the
key up by, and 256 random bits. Only the argon2id hash of the whole is kept. So much randomness
would be safe under any one-way hash; a slow one costs little here, since verified keys are
remembered for a while, and forgives a copy of the database more.
"""

import re
import secrets
from dataclasses import dataclass
from datetime import datetime

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

PREFIX = "tmx"
MAX_LENGTH = 128

_FORM = re.compile(rf"{PREFIX}_([0-9a-f]{{12}})_[A-Za-z0-9_-]{{43}}")
# What OWASP advises for argon2id: 46 MiB, one pass, one lane. Of its choices, this one is above the
# 32 MiB from which glibc always gives memory back; less stays with every thread that hashed.
_HASHER = PasswordHasher(time_cost=1, memory_cost=46 * 1024, parallelism=1)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key: all but the key. Moments are in UTC."""

    id: str
    tenant: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_valid(self, now: datetime) -> bool:
        is_expired = self.expires_at is not None and now >= self.expires_at
        return self.revoked_at is None and not is_expired


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A new key, to be shown once; `hash` is what to keep of it."""

    id: str
    text: str
    hash: str


def make() -> Secret:
    """A random key."""
    key_id = secrets.token_hex(6)
    text = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    return Secret(key_id, text, _HASHER.hash(text))


def id_of(text: str) -> str | None:
    """The public id in a key, or None for what is no key."""
    found = _FORM.fullmatch(text) if len(text) <= MAX_LENGTH else None
    return found[1] if found else None


def fits(text: str, kept: str) -> bool:
    """Whether a key is the one that was hashed; takes some 50 ms."""
    try:
        return _HASHER.verify(kept, text)
    except (VerificationError, InvalidHashError):
        return False
