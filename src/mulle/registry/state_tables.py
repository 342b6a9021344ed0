"""The tables of the state database as SQLAlchemy knows them; `migrations/` is what creates them."""

import sqlalchemy as sa

VERSION_TABLE = "mulle_alembic_version"
HEAD = "r0001"
"""The newest migration: a database that says so needs no Alembic to be opened."""

metadata = sa.MetaData()

events = sa.Table(
    "mulle_events",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time_ns", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("line", sa.LargeBinary, nullable=False),
)
"""`line` is the event; the columns before it repeat fields of it for people with an SQL client, and decide nothing."""

cursors = sa.Table(
    "mulle_cursors",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("seq", sa.Integer, nullable=False),
)

versions = sa.Table(
    "mulle_versions",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("bundle_digest", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("dataset_digest", sa.Text),
    sa.Column("git_commit", sa.Text),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

deployments = sa.Table(
    "mulle_deployments",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("champion", sa.Integer),
    sa.Column("challenger", sa.Integer),
    sa.Column("generation", sa.Integer, nullable=False),
)
