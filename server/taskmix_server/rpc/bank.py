"""`taskmix.v1.BankService` on gRPC."""

from taskmix.v1 import bank_pb2 as pb
from taskmix.v1 import bank_pb2_grpc
from taskmix_server.rpc import convert
from taskmix_server.rpc.access import caller
from taskmix_server.rpc.status import Context, reported
from taskmix_server.services.bank import BankService


class BankServicer(bank_pb2_grpc.BankServiceServicer):
    """The admin verbs."""

    def __init__(self, bank: BankService) -> None:
        self._bank = bank

    async def ListTasks(
        self, request: pb.ListTasksRequest, context: Context
    ) -> pb.ListTasksResponse:
        async with reported(context):
            tasks = [convert.to_task_info(status) for status in self._bank.list_tasks(caller())]
            return pb.ListTasksResponse(tasks=tasks, bank_revision=self._bank.revision)

    async def LoadTask(self, request: pb.LoadTaskRequest, context: Context) -> pb.LoadTaskResponse:
        async with reported(context) as request_id:
            status = await self._bank.load_task(caller(), request.name, request_id)
            task = convert.to_task_info(status)
            return pb.LoadTaskResponse(task=task, bank_revision=self._bank.revision)

    async def UnloadTask(
        self, request: pb.UnloadTaskRequest, context: Context
    ) -> pb.UnloadTaskResponse:
        async with reported(context) as request_id:
            status = await self._bank.unload_task(caller(), request.name, request_id)
            return pb.UnloadTaskResponse(task=convert.to_task_info(status))

    async def RegisterMix(
        self, request: pb.RegisterMixRequest, context: Context
    ) -> pb.RegisterMixResponse:
        async with reported(context) as request_id:
            mix = convert.to_mix(request.mix)
            described = await self._bank.register_mix(caller(), request.name, mix, request_id)
            return pb.RegisterMixResponse(mix=convert.to_named_mix(described))

    async def ListMixes(
        self, request: pb.ListMixesRequest, context: Context
    ) -> pb.ListMixesResponse:
        async with reported(context):
            mixes = [convert.to_named_mix(mix) for mix in await self._bank.list_mixes(caller())]
            return pb.ListMixesResponse(mixes=mixes)

    async def DeleteMix(
        self, request: pb.DeleteMixRequest, context: Context
    ) -> pb.DeleteMixResponse:
        async with reported(context) as request_id:
            await self._bank.delete_mix(caller(), request.name, request_id)
            return pb.DeleteMixResponse()
