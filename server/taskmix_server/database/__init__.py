"""The server's database: its tables, how they came about, and sessions on it."""

from taskmix_server.database.connection import Database
from taskmix_server.database.lock import state_in_use

__all__ = ["Database", "state_in_use"]
