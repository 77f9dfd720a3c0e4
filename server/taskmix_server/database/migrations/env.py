"""Run by Alembic: the connection comes from `taskmix_server.database.schema`."""

from alembic import context

from taskmix_server.database.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
