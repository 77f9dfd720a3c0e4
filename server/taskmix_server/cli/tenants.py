"""The verbs about who may use a server: tenants, keys, audit."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click

from taskmix_client import ApiKey, AuditRecord, Tenant
from taskmix_server.cli.connection import Server, connected, server_options
from taskmix_server.cli.table import print_table

VERBS = (
    *("tasks.load", "tasks.unload", "mixes.register", "mixes.delete"),
    *("experiments.create", "experiments.start", "experiments.ramp", "experiments.stop"),
    *("experiments.promote", "experiments.rollback", "experiments.record", "experiments.results"),
)
LIMITS: Mapping[str, tuple[type, str]] = {
    "requests_per_s": (float, "Requests per second."),
    "tokens_per_s": (float, "Tokens of prompts and answers per second."),
    "max_concurrency": (int, "Requests at the same time."),
    "max_queued": (int, "Requests that wait."),
    "max_prompt_tokens": (int, "Tokens of one prompt."),
    "max_output_tokens": (int, "Tokens of one answer."),
    "max_resident_bytes": (int, "Bytes of tasks in the engine."),
    "weight": (float, "Share under load relative to other tenants'; 1 if absent."),
}
"""The fields of `TenantLimits`: what they hold, and what they mean."""


@contextmanager
def administered(state: Path | None, server: Server) -> Iterator[Any]:
    """Whom to ask: the state directory itself, or the server. Both have a client's methods."""
    if state is None:
        with connected(server) as client:
            yield client
    else:
        from taskmix_server.cli.local import opened  # needs the server's extra

        with opened(state) as local:
            yield local


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say where; the command gets what it asks as `admin`."""

    @server_options
    @wraps(command)
    def run(*, state: Path | None, server: Server, **options: Any) -> None:
        with administered(state, server) as admin:
            command(admin=admin, **options)

    state = click.option(
        "--state",
        type=click.Path(file_okay=False, path_type=Path),
        help="The state directory of a server that does not run, instead of a server.",
    )
    return state(run)


def right_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of a tenant's rights and limits; absent ones are None or empty."""
    for option in reversed((*_RIGHTS, *map(_limit_option, LIMITS))):
        command = option(command)
    return command


_RIGHTS = (
    click.option("--role", type=click.Choice(["user", "admin"]), help="An admin may do all."),
    click.option("--tasks", multiple=True, metavar="GLOB", help="Tasks that it may use; repeated."),
    click.option(
        "--mixes",
        multiple=True,
        metavar="GLOB",
        help="Named mixes that it may use, if their tasks are allowed; repeated.",
    ),
    click.option(
        "--verbs",
        multiple=True,
        type=click.Choice(VERBS),
        help="Changes that it may make; repeated.",
    ),
    click.option("--inline/--no-inline", default=None, help="Whether it may write mixes."),
    click.option("--negative/--no-negative", default=None, help="Negative coefficients."),
)


def _limit_option(name: str) -> Callable[..., Any]:
    kind, meaning = LIMITS[name]
    flag = f"--{name.replace('_', '-')}"
    return click.option(flag, type=kind, help=f"Limit; 0 removes it. {meaning}")


@click.group()
def tenants() -> None:
    """Who may use a server: with --state before it is started, or with --server."""


@tenants.command("list")
@place_options
def list_tenants(admin: Any) -> None:
    """List the tenants and their rights."""
    _print_tenants(admin.tenants())


@tenants.command("create")
@place_options
@right_options
@click.argument("name")
def create_tenant(admin: Any, name: str, **rights: Any) -> None:
    """Add tenant NAME. The first one must have --role admin."""
    _print_tenants([admin.create_tenant(changed(Tenant(name), rights))])


@tenants.command("update")
@place_options
@right_options
@click.argument("name")
def update_tenant(admin: Any, name: str, **rights: Any) -> None:
    """Change what the flags say of tenant NAME; the rest stays."""
    known = {tenant.name: tenant for tenant in admin.tenants()}
    if name not in known:
        raise click.ClickException(f"no tenant is named {name!r}; they are: {', '.join(known)}")
    _print_tenants([admin.update_tenant(changed(known[name], rights))])


@tenants.command("delete")
@place_options
@click.argument("name")
def delete_tenant(admin: Any, name: str) -> None:
    """Remove tenant NAME and its keys."""
    admin.delete_tenant(name)
    click.echo(f"deleted {name}")


@click.group()
def keys() -> None:
    """The API keys of tenants."""


@keys.command("list")
@place_options
@click.option("--tenant", default="", metavar="NAME", help="Only this tenant's.")
def list_keys(admin: Any, tenant: str) -> None:
    """List keys, without what is secret of them."""
    _print_keys(admin.keys(tenant))


@keys.command("create")
@place_options
@click.option("--expires-in-days", type=click.FloatRange(0, 36500, min_open=True))
@click.argument("tenant")
def create_key(admin: Any, tenant: str, expires_in_days: float | None) -> None:
    """Give TENANT a key. It is printed once and not kept."""
    expires_at = None
    if expires_in_days is not None:
        expires_at = datetime.now(UTC) + timedelta(days=expires_in_days)
    click.echo(admin.create_key(tenant, expires_at).secret)


@keys.command("revoke")
@place_options
@click.argument("id")
def revoke_key(admin: Any, id: str) -> None:  # noqa: A002 - the argument's name in messages
    """End the key with the public part ID: `tmx_ID_...`."""
    _print_keys([admin.revoke_key(id)])


@click.command()
@place_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True)
@click.option("--before-id", type=int, help="Only changes before this one.")
def audit(admin: Any, limit: int, before_id: int | None) -> None:
    """List changes of state, newest first: one line of JSON each."""
    for record in admin.audit(limit, before_id):
        click.echo(_line(record))


def changed(tenant: Tenant, rights: dict[str, Any]) -> Tenant:
    """The tenant with what was given on the command line."""
    given = {name: value for name, value in rights.items() if value not in (None, ())}
    limits = {name: given.pop(name) or None for name in LIMITS if name in given}
    names = {"inline": "may_inline", "negative": "may_negative"}
    values = {names.get(name, name): value for name, value in given.items()}
    return replace(tenant, **values, limits=replace(tenant.limits, **limits))


def _print_tenants(listed: Sequence[Tenant]) -> None:
    head = ("tenant", "role", "tasks", "mixes", "verbs", "inline", "negative", "limits")
    print_table(head, [_tenant_row(tenant) for tenant in listed])


def _tenant_row(tenant: Tenant) -> tuple[str, ...]:
    limits = ((name, getattr(tenant.limits, name)) for name in LIMITS)
    return (
        tenant.name,
        tenant.role,
        *(" ".join(globs) or "-" for globs in (tenant.tasks, tenant.mixes, tenant.verbs)),
        *("yes" if is_allowed else "no" for is_allowed in (tenant.may_inline, tenant.may_negative)),
        " ".join(f"{name}={value:g}" for name, value in limits if value is not None) or "-",
    )


def _print_keys(listed: Sequence[ApiKey]) -> None:
    rows = [
        (key.id, key.tenant, *map(_moment, (key.created_at, key.expires_at, key.revoked_at)))
        for key in listed
    ]
    print_table(("key", "tenant", "created", "expires", "revoked"), rows)


def _line(record: AuditRecord) -> str:
    return json.dumps({**asdict(record), "at": record.at.isoformat()})


def _moment(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else "-"
