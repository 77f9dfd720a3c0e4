"""The tables. A change here needs a migration: `migrations/versions` has one file for each."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
}
"""Constraints need names of their own, lest a migration cannot say which one it drops."""

BIG_ID = BigInteger().with_variant(Integer, "sqlite")
"""Ids of rows that requests leave; SQLite counts up in INTEGER columns alone, of 64 bits too."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment, aware and in UTC on both sides, whatever the database keeps of its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Every table's base."""

    metadata = MetaData(naming_convention=NAMING)


class NamedMixRow(Base):
    """A mix that goes by a name. `mix_json` is its canonical JSON."""

    __tablename__ = "named_mixes"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    mix_json: Mapped[str] = mapped_column(Text)


class TenantRow(Base):
    """Who may call, and what they may use. `id` is never given again, a name may be."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    tasks: Mapped[list[str]] = mapped_column(JSON)
    mixes: Mapped[list[str]] = mapped_column(JSON)
    verbs: Mapped[list[str]] = mapped_column(JSON)
    may_inline: Mapped[bool] = mapped_column(Boolean)
    may_negative: Mapped[bool] = mapped_column(Boolean)
    limits: Mapped[dict[str, Any]] = mapped_column(JSON)


class ApiKeyRow(Base):
    """A key of a tenant. `id` is the key's public part, `hash` is of the secret one."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    hash: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AuditRow(Base):
    """One change of state. It names tenants and keys by what they were called then."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    tenant: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(16))
    request_id: Mapped[str] = mapped_column(String(64))
    verb: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(64))
    before: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    after: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class ExperimentRow(Base):
    """One version of an experiment: its design, which never changes, and where it stands.

    `design` is canonical JSON and `digest` its SHA-256; `ramp` is a percentage.
    """

    __tablename__ = "experiments"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(64))
    version: Mapped[int] = mapped_column(Integer)
    design: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    ramp: Mapped[float] = mapped_column(Float)
    halted: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    why: Mapped[str] = mapped_column(Text)
    promotion: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    stopped_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ExposureRow(Base):
    """The first time that a subject of a tenant met an experiment's version, and its arm."""

    __tablename__ = "experiment_exposures"
    __table_args__ = (UniqueConstraint("experiment_id", "tenant_id", "subject"),)

    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey("experiments.id"))
    tenant_id: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(String(256))
    arm: Mapped[str] = mapped_column(String(64))
    is_override: Mapped[bool] = mapped_column(Boolean)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class MeasuredRequestRow(Base):
    """What was measured of one request under one arm. Without an exposure it had no subject.

    Times are seconds. `error` and `finish_reason` are empty where there was none. `agreement`,
    `served_logprob` and `served_tokens` compare a shadow's answer with the served one.
    """

    __tablename__ = "experiment_requests"
    __table_args__ = (
        Index(None, "experiment_id", "request_id"),
        Index("ix_experiment_requests_arm", "experiment_id", "arm", "is_shadow", "at"),
        Index(None, "is_shadow", "at"),
    )

    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    experiment_id: Mapped[int] = mapped_column(ForeignKey("experiments.id"))
    exposure_id: Mapped[int | None] = mapped_column(
        ForeignKey("experiment_exposures.id"), index=True
    )
    tenant_id: Mapped[str] = mapped_column(String(32))
    request_id: Mapped[str] = mapped_column(String(64))
    arm: Mapped[str] = mapped_column(String(64))
    is_shadow: Mapped[bool] = mapped_column(Boolean)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    latency_s: Mapped[float] = mapped_column(Float)
    ttft_s: Mapped[float | None] = mapped_column(Float)
    num_tokens: Mapped[int] = mapped_column(Integer)
    error: Mapped[str] = mapped_column(String(64))
    finish_reason: Mapped[str] = mapped_column(String(16))
    agreement: Mapped[float | None] = mapped_column(Float)
    served_logprob: Mapped[float | None] = mapped_column(Float)
    served_tokens: Mapped[int | None] = mapped_column(Integer)


class OutcomeRow(Base):
    """A number that a caller reported of a subject or of a request.

    `key` is the caller's own, one for all versions of an experiment; `experiment` is their name.
    `request_id` is empty for what is of a subject; what is of a request has an exposure too, if the
    request had a subject.
    """

    __tablename__ = "experiment_outcomes"
    __table_args__ = (UniqueConstraint("experiment", "tenant_id", "key"),)

    id: Mapped[int] = mapped_column(BIG_ID, primary_key=True, autoincrement=True)
    experiment: Mapped[str] = mapped_column(String(64))
    experiment_id: Mapped[int] = mapped_column(ForeignKey("experiments.id"), index=True)
    exposure_id: Mapped[int | None] = mapped_column(
        ForeignKey("experiment_exposures.id"), index=True
    )
    request_id: Mapped[str] = mapped_column(String(64))
    tenant_id: Mapped[str] = mapped_column(String(32))
    key: Mapped[str] = mapped_column(String(128))
    metric: Mapped[str] = mapped_column(String(64))
    value: Mapped[float] = mapped_column(Float)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
