"""The event log, its cursors, and the tables for people with an SQL client."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

_APPEND_ONLY = (
    "CREATE TRIGGER mulle_events_no_{verb} BEFORE {verb} ON mulle_events BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END"
)


def upgrade() -> None:
    """Create everything, and make the log refuse changes where the database can."""
    op.create_table(
        "mulle_events",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("line", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "mulle_cursors",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("seq", sa.Integer, nullable=False),
    )
    op.create_table(
        "mulle_versions",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("bundle_digest", sa.Text, nullable=False),
        sa.Column("run_id", sa.Text),
        sa.Column("dataset_digest", sa.Text),
        sa.Column("git_commit", sa.Text),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "mulle_deployments",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("environment", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("champion", sa.Integer),
        sa.Column("challenger", sa.Integer),
        sa.Column("generation", sa.Integer, nullable=False),
    )
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(_APPEND_ONLY.format(verb=verb))


def downgrade() -> None:
    """Remove the tables, and the log with them: only for a database that is to be thrown away."""
    for table in ("mulle_deployments", "mulle_versions", "mulle_cursors", "mulle_events"):
        op.drop_table(table)
