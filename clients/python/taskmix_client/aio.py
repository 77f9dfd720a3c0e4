"""The asyncio client."""

from collections.abc import AsyncGenerator
from datetime import datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from taskmix.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    bank_pb2,
    bank_pb2_grpc,
    experiments_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from taskmix_client._admin import (
    from_tenant,
    to_audit_record,
    to_key,
    to_key_request,
    to_new_key,
    to_tenant,
)
from taskmix_client._base import ChunkReader, to_answer, to_named_mix, to_task
from taskmix_client.aio_experiments import AsyncExperimentCalls
from taskmix_client.config import ClientConfig
from taskmix_client.errors import from_rpc
from taskmix_client.models import Answer, Chunk, NamedMix, Task
from taskmix_client.options import MixLike, Options, Prompt, to_mix, to_request
from taskmix_client.tenants import ApiKey, AuditRecord, NewKey, Tenant

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsyncClient(AsyncExperimentCalls):
    """Calls one server from a running event loop; otherwise like `Client`."""

    def __init__(
        self,
        target: str,
        api_key: str | None = None,
        *,
        timeout_s: float | None = None,
        max_attempts: int = 4,
        tls: bool = False,
        ca: str | PathLike[str] | None = None,
    ) -> None:
        trusted = None if ca is None else Path(ca)
        self._config = ClientConfig(target, api_key, timeout_s, max_attempts, tls, trusted)
        self._channel = _open_channel(self._config)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._bank = bank_pb2_grpc.BankServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._experiments = experiments_pb2_grpc.ExperimentServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; calls in flight end as CancelledError."""
        await self._channel.close()

    async def generate(self, prompt: Prompt | None = None, **options: Unpack[Options]) -> Answer:
        """Continue a prompt (text or token ids) or a chat; `Options` lists the keywords."""
        request = to_request(prompt, options)
        response = await self._call(self._inference.Generate, request, options.get("timeout_s"))
        return to_answer(response)

    def stream(
        self, prompt: Prompt | None = None, **options: Unpack[Options]
    ) -> AsyncGenerator[Chunk, None]:
        """Like `generate`, piece by piece. Closing the generator stops the work on the server."""
        request = inference_pb2.StreamGenerateRequest(request=to_request(prompt, options))
        return self._chunks(request, options.get("timeout_s"))

    async def tasks(self) -> tuple[Task, ...]:
        """List the bank's tasks."""
        response = await self._call(self._bank.ListTasks, bank_pb2.ListTasksRequest())
        return tuple(to_task(info) for info in response.tasks)

    async def load_task(self, name: str) -> Task:
        """Make a task of the bank directory servable."""
        response = await self._call(self._bank.LoadTask, bank_pb2.LoadTaskRequest(name=name))
        return to_task(response.task)

    async def unload_task(self, name: str) -> Task:
        """Make a task unservable."""
        response = await self._call(self._bank.UnloadTask, bank_pb2.UnloadTaskRequest(name=name))
        return to_task(response.task)

    async def register_mix(self, name: str, mix: MixLike) -> NamedMix:
        """Give a mix a name."""
        request = bank_pb2.RegisterMixRequest(name=name, mix=to_mix(mix))
        response = await self._call(self._bank.RegisterMix, request)
        return to_named_mix(response.mix)

    async def mixes(self) -> tuple[NamedMix, ...]:
        """List the named mixes."""
        response = await self._call(self._bank.ListMixes, bank_pb2.ListMixesRequest())
        return tuple(to_named_mix(mix) for mix in response.mixes)

    async def delete_mix(self, name: str) -> None:
        """Forget a name."""
        await self._call(self._bank.DeleteMix, bank_pb2.DeleteMixRequest(name=name))

    async def tenants(self) -> tuple[Tenant, ...]:
        """List the tenants."""
        response = await self._call(self._admin.ListTenants, admin_pb2.ListTenantsRequest())
        return tuple(to_tenant(tenant) for tenant in response.tenants)

    async def create_tenant(self, tenant: Tenant) -> Tenant:
        """Add a tenant."""
        request = admin_pb2.CreateTenantRequest(tenant=from_tenant(tenant))
        response = await self._call(self._admin.CreateTenant, request)
        return to_tenant(response.tenant)

    async def update_tenant(self, tenant: Tenant) -> Tenant:
        """Replace all rights and limits of the tenant of this name."""
        request = admin_pb2.UpdateTenantRequest(tenant=from_tenant(tenant))
        response = await self._call(self._admin.UpdateTenant, request)
        return to_tenant(response.tenant)

    async def delete_tenant(self, name: str) -> None:
        """Remove a tenant and its keys."""
        await self._call(self._admin.DeleteTenant, admin_pb2.DeleteTenantRequest(name=name))

    async def keys(self, tenant: str = "") -> tuple[ApiKey, ...]:
        """List the keys of a tenant, or of all."""
        request = admin_pb2.ListKeysRequest(tenant=tenant)
        response = await self._call(self._admin.ListKeys, request)
        return tuple(to_key(key) for key in response.keys)

    async def create_key(self, tenant: str, expires_at: datetime | None = None) -> NewKey:
        """Give a tenant a key. Its `secret` cannot be asked for again."""
        request = to_key_request(tenant, expires_at)
        response = await self._call(self._admin.CreateKey, request)
        return to_new_key(response)

    async def revoke_key(self, key_id: str) -> ApiKey:
        """End a key at once, by its public part."""
        request = admin_pb2.RevokeKeyRequest(id=key_id)
        response = await self._call(self._admin.RevokeKey, request)
        return to_key(response.key)

    async def audit(
        self, limit: int = 100, before_id: int | None = None
    ) -> tuple[AuditRecord, ...]:
        """List changes of state, newest first; `before_id` continues a list."""
        request = admin_pb2.ListAuditRequest(limit=limit, before_id=before_id)
        response = await self._call(self._admin.ListAudit, request)
        return tuple(to_audit_record(record) for record in response.records)

    async def _call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]",
        request: RequestT,
        timeout_s: float | None = None,
    ) -> ResponseT:
        try:
            return await method(
                request,
                timeout=self._config.limit_s(timeout_s),
                metadata=self._config.metadata,
            )
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, target=self._config.target) from error

    async def _chunks(
        self, request: inference_pb2.StreamGenerateRequest, timeout_s: float | None
    ) -> AsyncGenerator[Chunk, None]:
        reader = ChunkReader()
        responses = self._inference.StreamGenerate(
            request, timeout=self._config.limit_s(timeout_s), metadata=self._config.metadata
        )
        try:
            async for response in responses:
                for chunk in reader.read(response):
                    yield chunk
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, target=self._config.target) from error
        finally:
            responses.cancel()


def _open_channel(config: ClientConfig) -> grpc.aio.Channel:
    if config.is_secure:
        credentials = grpc.ssl_channel_credentials(config.root_certificates)
        return grpc.aio.secure_channel(config.target, credentials, config.channel_options)
    return grpc.aio.insecure_channel(config.target, config.channel_options)
