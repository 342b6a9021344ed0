"""Runs the steps on the connection it is given; the version table is Mulle's own, beside MLflow's and Optuna's."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from alembic import context

from mulle.registry.state_tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
