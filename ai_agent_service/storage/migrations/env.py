"""What Alembic runs the migrations in: the connection and the transaction that the caller holds."""

from alembic import context

from ai_agent_service.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
)
context.run_migrations()
