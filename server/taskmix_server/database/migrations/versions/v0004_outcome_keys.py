"""Outcomes' keys by experiment, and outcomes that name their request as their caller does."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

TABLE = "experiment_outcomes"
REQUEST_KEY = f"fk_{TABLE}_request_row_id"
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("experiment", sa.String(64), server_default=""))
    op.add_column(TABLE, sa.Column("request_id", sa.String(64), server_default=""))
    op.execute(
        f"UPDATE {TABLE} SET "  # noqa: S608 - no value of a caller's
        f"experiment = (SELECT name FROM experiments WHERE id = {TABLE}.experiment_id), "
        "request_id = coalesce("
        f"(SELECT request_id FROM experiment_requests WHERE id = {TABLE}.request_row_id), '')"
    )
    with op.batch_alter_table(TABLE) as table:
        for column in ("experiment", "request_id"):
            table.alter_column(
                column, existing_type=sa.String(64), nullable=False, server_default=None
            )
        table.drop_constraint(REQUEST_KEY, type_="foreignkey")
        table.drop_column("request_row_id")
        table.drop_constraint(f"uq_{TABLE}_tenant_id", type_="unique")
        table.create_unique_constraint(f"uq_{TABLE}_experiment", ["experiment", "tenant_id", "key"])


def downgrade() -> None:
    """Keys that two experiments have taken since stand in its way; nothing is changed then."""
    with op.batch_alter_table(TABLE) as table:
        table.drop_constraint(f"uq_{TABLE}_experiment", type_="unique")
        table.create_unique_constraint(f"uq_{TABLE}_tenant_id", ["tenant_id", "key"])
        table.add_column(sa.Column("request_row_id", BIG_ID, nullable=True))
        table.create_foreign_key(REQUEST_KEY, "experiment_requests", ["request_row_id"], ["id"])
    op.execute(
        f"UPDATE {TABLE} SET request_row_id = (SELECT max(id) FROM experiment_requests AS request "  # noqa: S608 - no value of a caller's
        f"WHERE request.experiment_id = {TABLE}.experiment_id "
        f"AND request.request_id = {TABLE}.request_id AND NOT request.is_shadow)"
    )
    with op.batch_alter_table(TABLE) as table:
        table.drop_column("experiment")
        table.drop_column("request_id")
