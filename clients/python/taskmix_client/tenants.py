"""Who may call a server, and what was changed: frozen values, free of protocol buffers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """How much a tenant may use; None is no limit of its own."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    max_concurrency: int | None = None
    max_queued: int | None = None
    max_prompt_tokens: int | None = None
    max_output_tokens: int | None = None
    max_resident_bytes: int | None = None
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A unit of isolation, quota and billing.

    `role` is `admin`, who may do everything, or `user`, who may use what the rest says: tasks and
    named mixes by globs, the verbs `tasks.load`, `tasks.unload`, `mixes.register`, `mixes.delete`,
    and `experiments.` with create, start, ramp, stop, promote, rollback, record and results.
    """

    name: str
    role: str = "user"
    tasks: tuple[str, ...] = ()
    mixes: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    may_inline: bool = False
    may_negative: bool = False
    limits: TenantLimits = field(default_factory=TenantLimits)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key, without what is secret of it. Moments are in UTC; None is never."""

    id: str
    tenant: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `secret` is what callers send, and is not kept anywhere."""

    key: ApiKey
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One change of state: when (UTC), by whom, what, and from what to what."""

    id: int
    at: datetime
    tenant: str
    key_id: str
    request_id: str
    verb: str
    subject: str
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None
