"""A served process with tenants, over TLS."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from taskmix_client import Client
from tests.support.certificates import Authority, issue
from tests.support.models import Models
from tests.support.served import Served, serving, taskmix

USERS = {
    "alice": (
        *("--tasks", "a", "--tasks", "c", "--mixes", "alice-*", "--inline", "--negative"),
        *("--verbs", "mixes.register", "--verbs", "mixes.delete", "--verbs", "tasks.load"),
    ),
    "bob": ("--tasks", "[ab]", "--inline"),
    "carol": (
        "--tasks",
        "*",
    ),
}


@dataclass(frozen=True)
class Guarded:
    """A server, the authority that signed its certificate, and a key of each tenant."""

    served: Served
    authority: Authority
    keys: dict[str, str]

    def client(self, tenant: str, *, ca: Path | None = None) -> Client:
        key = self.keys.get(tenant, tenant)
        return Client(self.served.grpc, key, timeout_s=60, ca=ca or self.authority.ca)

    def http(self, tenant: str, *, ca: Path | None = None) -> httpx.Client:
        key = self.keys.get(tenant, tenant)
        return httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=ca or self.authority.ca),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=60,
        )

    @property
    def url(self) -> str:
        return self.served.http.replace("http://", "https://")


@contextmanager
def guarding(
    models: Models, directory: Path, *flags: str, environment: tuple[str, ...] = ()
) -> Iterator[Guarded]:
    """Create an admin `ops` and USERS, each with a key, and serve them."""
    state = directory / "state"
    taskmix("tenants", "create", "ops", "--role", "admin", "--state", state)
    for name, rights in USERS.items():
        taskmix("tenants", "create", name, *rights, "--state", state)
    keys = {
        name: taskmix("keys", "create", name, "--state", state).strip() for name in ("ops", *USERS)
    }
    authority = issue(directory, "first")
    files = ("--tls-cert", str(authority.chain), "--tls-key", str(authority.key))
    # Tenants are enough for any address; loopback keeps the test's server to this machine.
    options = (*files, *flags)
    with serving(models.base, models.bank, state, *options, environment=environment) as served:
        yield Guarded(served, authority, keys)
