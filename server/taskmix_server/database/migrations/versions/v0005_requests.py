"""Measured requests by arm and time, those of shadows by time, and what was served to those."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

TABLE = "experiment_requests"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column("served_tokens", sa.Integer(), nullable=True))
    op.create_index(f"ix_{TABLE}_arm", TABLE, ["experiment_id", "arm", "is_shadow", "at"])
    op.create_index(f"ix_{TABLE}_is_shadow", TABLE, ["is_shadow", "at"])
    op.drop_index(f"ix_{TABLE}_at", TABLE)


def downgrade() -> None:
    op.create_index(f"ix_{TABLE}_at", TABLE, ["at"])
    op.drop_index(f"ix_{TABLE}_is_shadow", TABLE)
    op.drop_index(f"ix_{TABLE}_arm", TABLE)
    op.drop_column(TABLE, "served_tokens")
