"""Named mixes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "named_mixes",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("mix_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_named_mixes"),
    )


def downgrade() -> None:
    op.drop_table("named_mixes")
