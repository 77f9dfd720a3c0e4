"""Which tenant loaded which task, and what those take in the engine."""

from taskmix_server.errors import ResourceExhaustedError
from taskmix_server.runtime.statuses import TaskStatus
from taskmix_server.runtime.tasks import TaskRegistry
from taskmix_server.tenancy.tenant import Tenant

RETRY_S = 5.0
"""When to try again for room: nobody knows when a task will be unloaded."""


class TaskLoads:
    """Tasks by the tenant that made them resident; those that a server loads at its start are
    nobody's. One event loop only."""

    def __init__(self, tasks: TaskRegistry) -> None:
        self._tasks = tasks
        self._loaders: dict[str, str] = {}  # task -> the tenant's id

    def check(self, tenant: Tenant, status: TaskStatus) -> None:
        """Refuse a task that the tenant has no room for beside what it loaded before."""
        most = tenant.limits.max_resident_bytes
        if most is None:
            return
        others = (name for name, loader in self._loaders.items() if loader == tenant.id)
        held = sum(
            self._tasks.status(name).resident_bytes for name in others if name != status.name
        )
        wanted = status.resident_bytes or status.num_bytes
        if held + wanted > most:
            raise ResourceExhaustedError(
                f"task {status.name!r} takes {wanted} bytes, and tenant {tenant.name!r} has "
                f"{held} of at most {most} (max_resident_bytes); unload another one first",
                RETRY_S,
                "memory",
            )

    def note(self, tenant: Tenant, name: str) -> None:
        """The tenant has loaded a task, or new content for it."""
        self._loaders[name] = tenant.id

    def forget(self, name: str) -> None:
        """A task is no longer loaded."""
        self._loaders.pop(name, None)
