"""What an operator chooses about who may connect."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from taskmix_server.errors import FailedPreconditionError


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """tls_cert, tls_key: PEM files of the chain and of its key; None for plain text.

    allow_unauthenticated: serve anybody on other addresses than loopback where there are no
    tenants. metrics_open: serve `/metrics` without a key.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_unauthenticated: bool = False
    metrics_open: bool = False

    def check_host(self, host: str, *, is_open: bool) -> None:
        """Refuse to serve whoever reaches this machine; `is_open` says that nobody needs a key."""
        if is_open and not self.allow_unauthenticated and not is_loopback(host):
            raise FailedPreconditionError(
                f"no tenant is configured, so that anybody who reaches {host} could use and change "
                "this server; create an admin with `taskmix tenants create` and `taskmix keys "
                "create`, serve on 127.0.0.1, or say --allow-unauthenticated"
            )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone. Names but `localhost` are not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
