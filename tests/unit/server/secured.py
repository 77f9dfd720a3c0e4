"""Both edges over a fake engine, for tenants with different rights."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from taskmix_client import AsyncClient
from taskmix_server.rest.app import build_app
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.services.services import Services
from taskmix_server.tenancy.audit import Author
from taskmix_server.tenancy.tenant import Role, Tenant, Verb
from tests.unit.server.conftest import Parts, with_access

AUTHOR = Author("(test)", "", "")

TENANTS = (
    Tenant("ops", Role.ADMIN),
    # Everything that a user may have, over `head` alone.
    Tenant(
        "full",
        tasks=("head",),
        mixes=("full-*",),
        verbs=tuple(Verb),
        may_inline=True,
        may_negative=True,
    ),
    # Nothing but a task.
    Tenant("bare", tasks=("body", "l*")),
)


async def answered(scope: Scope, receive: Receive, send: Send) -> None:
    """In vLLM's place: tells the body that reached it."""
    await JSONResponse(await Request(scope, receive).json())(scope, receive, send)


@dataclass(frozen=True)
class Secured:
    """Both edges, and a key of each tenant; `revoked` was one of ops."""

    services: Services
    target: str
    http: httpx.AsyncClient
    keys: dict[str, str]
    channel: grpc.aio.Channel

    def client(self, tenant: str) -> AsyncClient:
        return AsyncClient(self.target, self.keys[tenant], timeout_s=20, max_attempts=1)


@asynccontextmanager
async def secured(parts: Parts) -> AsyncIterator[Secured]:
    """Serve `parts` to TENANTS."""
    for tenant in TENANTS:
        parts.store.create(tenant, AUTHOR)
    keys = {
        tenant.name: parts.store.create_key(tenant.name, None, AUTHOR)[1].text for tenant in TENANTS
    }
    revoked, secret = parts.store.create_key("ops", None, AUTHOR)
    parts.store.revoke_key(revoked.id, AUTHOR)
    keys["revoked"] = secret.text
    services = with_access(
        parts.inference, parts.admin, parts.experiments, parts.audit, parts.store
    )
    edge = GrpcEdge(services)
    port = await edge.start("127.0.0.1", 0)
    app: Any = build_app(answered, services, parts.engine, "tiny")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    target = f"127.0.0.1:{port}"
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://edge") as http,
        grpc.aio.insecure_channel(target) as channel,
    ):
        yield Secured(services, target, http, keys, channel)
    await edge.stop(0.0)
