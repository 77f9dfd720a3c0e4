"""Experiments, who met them, what was measured, and what callers reported."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_experiments()
    _create_exposures()
    _create_requests()
    _create_outcomes()


def downgrade() -> None:
    op.drop_index("ix_experiment_outcomes_exposure_id", "experiment_outcomes")
    op.drop_index("ix_experiment_outcomes_experiment_id", "experiment_outcomes")
    op.drop_table("experiment_outcomes")
    op.drop_index("ix_experiment_requests_experiment_id", "experiment_requests")
    op.drop_index("ix_experiment_requests_at", "experiment_requests")
    op.drop_index("ix_experiment_requests_exposure_id", "experiment_requests")
    op.drop_table("experiment_requests")
    op.drop_table("experiment_exposures")
    op.drop_table("experiments")


def _create_experiments() -> None:
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("design", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("ramp", sa.Float(), nullable=False),
        sa.Column("halted", sa.JSON(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("promotion", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_experiments"),
        sa.UniqueConstraint("name", "version", name="uq_experiments_name"),
    )


def _create_exposures() -> None:
    table = "experiment_exposures"
    op.create_table(
        table,
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("is_override", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint(
            "experiment_id", "tenant_id", "subject", name=f"uq_{table}_experiment_id"
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=f"fk_{table}_experiment_id"
        ),
    )


def _create_requests() -> None:
    table = "experiment_requests"
    op.create_table(
        table,
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("exposure_id", BIG_ID, nullable=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("is_shadow", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("latency_s", sa.Float(), nullable=False),
        sa.Column("ttft_s", sa.Float(), nullable=True),
        sa.Column("num_tokens", sa.Integer(), nullable=False),
        sa.Column("error", sa.String(64), nullable=False),
        sa.Column("finish_reason", sa.String(16), nullable=False),
        sa.Column("agreement", sa.Float(), nullable=True),
        sa.Column("served_logprob", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=f"fk_{table}_experiment_id"
        ),
        sa.ForeignKeyConstraint(
            ["exposure_id"], ["experiment_exposures.id"], name=f"fk_{table}_exposure_id"
        ),
    )
    op.create_index(f"ix_{table}_exposure_id", table, ["exposure_id"])
    op.create_index(f"ix_{table}_at", table, ["at"])
    op.create_index(f"ix_{table}_experiment_id", table, ["experiment_id", "request_id"])


def _create_outcomes() -> None:
    table = "experiment_outcomes"
    op.create_table(
        table,
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("exposure_id", BIG_ID, nullable=True),
        sa.Column("request_row_id", BIG_ID, nullable=True),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("metric", sa.String(64), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint("tenant_id", "key", name=f"uq_{table}_tenant_id"),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=f"fk_{table}_experiment_id"
        ),
        sa.ForeignKeyConstraint(
            ["exposure_id"], ["experiment_exposures.id"], name=f"fk_{table}_exposure_id"
        ),
        sa.ForeignKeyConstraint(
            ["request_row_id"], ["experiment_requests.id"], name=f"fk_{table}_request_row_id"
        ),
    )
    op.create_index(f"ix_{table}_experiment_id", table, ["experiment_id"])
    op.create_index(f"ix_{table}_exposure_id", table, ["exposure_id"])
