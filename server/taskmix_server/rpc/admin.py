"""`taskmix.v1.AdminService` on gRPC."""

from taskmix.v1 import admin_pb2 as pb
from taskmix.v1 import admin_pb2_grpc
from taskmix_server.errors import InvalidRequestError
from taskmix_server.rpc import convert_admin as convert
from taskmix_server.rpc.access import caller
from taskmix_server.rpc.status import Context, reported
from taskmix_server.services.tenants import TenantService

DEFAULT_LISTED = 100


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Tenants, keys and the audit log."""

    def __init__(self, tenants: TenantService) -> None:
        self._tenants = tenants

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        async with reported(context):
            tenants = await self._tenants.tenants(caller())
            return pb.ListTenantsResponse(tenants=map(convert.to_tenant_message, tenants))

    async def CreateTenant(
        self, request: pb.CreateTenantRequest, context: Context
    ) -> pb.CreateTenantResponse:
        async with reported(context) as request_id:
            tenant = convert.to_tenant(request.tenant)
            created = await self._tenants.create(caller(), tenant, request_id)
            return pb.CreateTenantResponse(tenant=convert.to_tenant_message(created))

    async def UpdateTenant(
        self, request: pb.UpdateTenantRequest, context: Context
    ) -> pb.UpdateTenantResponse:
        async with reported(context) as request_id:
            tenant = convert.to_tenant(request.tenant)
            changed = await self._tenants.update(caller(), tenant, request_id)
            return pb.UpdateTenantResponse(tenant=convert.to_tenant_message(changed))

    async def DeleteTenant(
        self, request: pb.DeleteTenantRequest, context: Context
    ) -> pb.DeleteTenantResponse:
        async with reported(context) as request_id:
            await self._tenants.delete(caller(), request.name, request_id)
            return pb.DeleteTenantResponse()

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        async with reported(context):
            keys = await self._tenants.keys(caller(), request.tenant)
            return pb.ListKeysResponse(keys=map(convert.to_key_message, keys))

    async def CreateKey(
        self, request: pb.CreateKeyRequest, context: Context
    ) -> pb.CreateKeyResponse:
        async with reported(context) as request_id:
            expires_at = convert.to_expiry(request)
            key, secret = await self._tenants.create_key(
                caller(), request.tenant, expires_at, request_id
            )
            return pb.CreateKeyResponse(key=convert.to_key_message(key), secret=secret.text)

    async def RevokeKey(
        self, request: pb.RevokeKeyRequest, context: Context
    ) -> pb.RevokeKeyResponse:
        async with reported(context) as request_id:
            key = await self._tenants.revoke_key(caller(), request.id, request_id)
            return pb.RevokeKeyResponse(key=convert.to_key_message(key))

    async def ListAudit(
        self, request: pb.ListAuditRequest, context: Context
    ) -> pb.ListAuditResponse:
        async with reported(context):
            if request.limit < 0:
                raise InvalidRequestError(f"limit must be 0 or more, got {request.limit}")
            before_id = request.before_id if request.HasField("before_id") else None
            limit = request.limit or DEFAULT_LISTED
            changes = await self._tenants.latest_changes(caller(), limit, before_id)
            return pb.ListAuditResponse(records=map(convert.to_audit_message, changes))
